from callbacks.checkpoints import WholeCheckpointIO
from callbacks.curves import LogCurves
from callbacks.images import LogColorizations, LogReconstructions, LogSamples, SavePredictions
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
    "SaveLast",
    "SavePredictions",
    "StopWhenNotFinite",
    "WholeCheckpointIO",
]
