from callbacks.checkpoints import WholeCheckpointIO
from callbacks.curves import LogCurves
from callbacks.images import (
    LogColorizations,
    LogLatentMap,
    LogReconstructions,
    LogSamples,
    SaveColorized,
    SavePredictions,
)
from callbacks.loggers import ResumableCSVLogger, ResumableWandbLogger
from callbacks.not_finite import StopWhenNotFinite
from callbacks.resuming import Interrupted, ResumeExactly, SaveLast
from callbacks.samples import FitSamplers, MeasureSamples

__all__ = [
    "FitSamplers",
    "Interrupted",
    "LogColorizations",
    "LogCurves",
    "LogLatentMap",
    "LogReconstructions",
    "LogSamples",
    "MeasureSamples",
    "ResumableCSVLogger",
    "ResumableWandbLogger",
    "ResumeExactly",
    "SaveColorized",
    "SaveLast",
    "SavePredictions",
    "StopWhenNotFinite",
    "WholeCheckpointIO",
]
