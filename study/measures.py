"""What finished models make of the same held-out images."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from callbacks.images import spread_out
from colorization import Colorizer
from colorization.metrics import CIEDE2000
from datamodules.folder import FolderDataModule
from study.runs import Run, load_class

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_data(run: Run) -> FolderDataModule:
    """Open the images that a run was trained on, and those that it was not."""
    return load_class(run.config["data"]["class_path"])(**run.config["data"]["init_args"] | {"on_device": False})


def load_model(run: Run) -> Any:
    """Load the model as it was at the end of training."""
    return run.kind.load_from_checkpoint(run.checkpoint, DEVICE, weights_only=True)


def test(model: LightningModule, run: Run, data: FolderDataModule) -> dict[str, float]:
    """Return what ``train.py test`` logs, without its prefix."""
    trainer = Trainer(
        accelerator=DEVICE.type,
        devices=1,
        precision=run.config["trainer"]["precision"],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    (metrics,) = trainer.test(model, datamodule=data, verbose=False)
    model.to(DEVICE)
    return {name.removeprefix("test/"): value for name, value in metrics.items()}


def difference(first: Colorizer, second: Colorizer, data: FolderDataModule) -> float:
    """Return how different the colors of two models look: CIEDE2000, averaged over all held-out images."""
    metric = CIEDE2000().to(DEVICE)
    for batch in data.test_dataloader():
        images = data.on_after_batch_transfer(batch.to(DEVICE), 0)
        metric.update(first.colorize(images), second.colorize(images))
    return metric.compute().item()


def held_out(data: FolderDataModule, number: int) -> Tensor:
    """Return up to ``number`` held-out images (B, 3, H, W) in [0, 1], ever the same ones."""
    return data.on_after_batch_transfer(spread_out(data.test_dataloader().dataset, number).to(DEVICE), 0)
