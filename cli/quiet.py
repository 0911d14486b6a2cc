"""Silences what Lightning says that helps nobody."""

import logging
import warnings

WARNINGS = (
    "`isinstance.treespec, LeafSpec.` is deprecated",  # Lightning 2.6 with torch 2.15
    "The dirpath has changed",  # a checkpoint was copied out of its run: only later epochs can be the best
    "You're resuming from a checkpoint that ended before the epoch ended",  # the data goes on there, too
    "The .* does not have many workers",  # a store needs none
    "Checkpoint directory .* exists and is not empty",  # a resumed run continues in its own
    "Metric `Kernel Inception Distance` will save all extracted features",  # a few MB
    "The number of training batches .* is smaller than the logging interval",  # epoch means are logged all the same
)
MESSAGES = (
    "litlogger",  # an advertisement, as is the next
    "litmodels",
    "Seed set to",  # the config has it
    "GPU available",  # our own line says what is used
    "TPU available",
    "Using bfloat16 Automatic Mixed Precision",  # the config says so
    "`Trainer.fit` stopped",  # the last lines say more
    "Restored all states from the checkpoint",
    "Restoring states from the checkpoint path",
)


def quiet_lightning() -> None:
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).addFilter(_helps)


def _helps(record: logging.LogRecord) -> bool:
    return not any(said in record.getMessage() for said in MESSAGES)
