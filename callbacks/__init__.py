from callbacks.averaging import AverageWeights
from callbacks.curves import LogCurves
from callbacks.not_finite import StopWhenNotFinite
from callbacks.pictures import LogColorizations, LogLatentMap, LogReconstructions, LogSamples, SavePredictions
from callbacks.samples import FitSamplers, MeasureSamples
from callbacks.table import LogTable
from resuming.artifacts import LogCheckpoints
from resuming.callback import ResumeExactly, SaveLast
from resuming.checkpoints import WholeCheckpointIO
from resuming.lightning_internals import SaveBest
from resuming.loggers import ResumableCSVLogger, ResumableWandbLogger

__all__ = [
    "AverageWeights",
    "FitSamplers",
    "LogCheckpoints",
    "LogColorizations",
    "LogCurves",
    "LogLatentMap",
    "LogReconstructions",
    "LogSamples",
    "LogTable",
    "MeasureSamples",
    "ResumableCSVLogger",
    "ResumableWandbLogger",
    "ResumeExactly",
    "SaveBest",
    "SaveLast",
    "SavePredictions",
    "StopWhenNotFinite",
    "WholeCheckpointIO",
]
