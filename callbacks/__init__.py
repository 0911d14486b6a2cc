from callbacks.checkpoints import WholeCheckpointIO
from callbacks.curves import LogCurves
from callbacks.images import LogColorizations, LogReconstructions, LogSamples, SaveColorized, SavePredictions
from callbacks.loggers import ResumableCSVLogger, ResumableWandbLogger
from callbacks.not_finite import StopWhenNotFinite
from callbacks.resuming import Interrupted, ResumeExactly, SaveLast

__all__ = [
    "Interrupted",
    "LogColorizations",
    "LogCurves",
    "LogReconstructions",
    "LogSamples",
    "ResumableCSVLogger",
    "ResumableWandbLogger",
    "ResumeExactly",
    "SaveColorized",
    "SaveLast",
    "SavePredictions",
    "StopWhenNotFinite",
    "WholeCheckpointIO",
]
