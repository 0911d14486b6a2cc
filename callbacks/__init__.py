from callbacks.checkpoints import WholeCheckpointIO
from callbacks.curves import LogCurves
from callbacks.images import LogColorizations, LogReconstructions, LogSamples, SavePredictions

__all__ = ["LogColorizations", "LogCurves", "LogReconstructions", "LogSamples", "SavePredictions", "WholeCheckpointIO"]
