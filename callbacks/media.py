"""Where a run's pictures go: PNG files in its folder, and Weights & Biases."""

from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger
from PIL import Image

from images.drawing import save_png


def run_folder(trainer: Trainer) -> Path:
    """Return the run's folder, the first process's. A collective call: make it in every process."""
    return Path(trainer.strategy.broadcast(trainer.default_root_dir))  # log_dir depends on which logger is first


def media_folder(trainer: Trainer) -> Path:
    """Return the folder of the run's pictures. A collective call: make it in every process."""
    return run_folder(trainer) / "media"


def publish(image: Image.Image, path: Path, trainer: Trainer, key: str, caption: str) -> None:
    """Write an image as PNG, and log it to W&B under ``key``; for the first process only."""
    save_png(image, path)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key, [image], step=last_step(trainer), caption=[caption])


def last_step(trainer: Trainer) -> int:
    """Return the step at which Lightning logs an epoch's metrics."""
    return max(trainer.global_step - 1, 0)
