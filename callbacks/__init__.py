from callbacks.curves import LogCurves
from callbacks.images import LogReconstructions, LogSamples

__all__ = ["LogCurves", "LogReconstructions", "LogSamples"]
