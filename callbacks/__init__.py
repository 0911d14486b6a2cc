from callbacks.curves import LogCurves
from callbacks.images import LogReconstructions, LogSamples, SavePredictions

__all__ = ["LogCurves", "LogReconstructions", "LogSamples", "SavePredictions"]
