from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from resuming.lightning_internals import (
    begin_validation_again,
    finished_epochs,
    is_accumulating,
    is_within_epoch,
    place_in_epoch,
    position,
    straighten_progress,
)


class Toy(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.layer(batch).mean()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("val/loss", self.layer(batch).mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Watch(Callback):
    """Asks everything at its place in a run of 2 epochs with 4 batches each, 2 to a step."""

    def __init__(self) -> None:
        self.asked: set[str] = set()

    def ask(self, trainer: Trainer, where: str) -> dict[str, Any]:
        self.asked.add(where)
        trainer.save_checkpoint("here.ckpt")
        return torch.load("here.ckpt", weights_only=True)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        checkpoint = self.ask(trainer, "epoch")
        straighten_progress(checkpoint)
        assert place_in_epoch(checkpoint) == (trainer.current_epoch, 0)
        assert finished_epochs(checkpoint) == trainer.current_epoch
        epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
        assert epochs["ready"] == epochs["started"] == trainer.current_epoch  # the epoch announced is uncounted

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        assert position(trainer) == (trainer.current_epoch, 4 * trainer.current_epoch + batch_idx, False)
        checkpoint = self.ask(trainer, "batch")
        assert is_within_epoch(checkpoint)
        assert place_in_epoch(checkpoint) == (trainer.current_epoch, batch_idx)
        straighten_progress(checkpoint)
        batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        assert set(batches["current"].values()) == {batch_idx}
        assert not batches["is_last_batch"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert is_accumulating(trainer) == (batch_idx % 2 == 0)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.sanity_checking:
            return
        checkpoint = self.ask(trainer, "validation")
        straighten_progress(checkpoint)
        counts = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
        done = counts["total"]["completed"]
        assert counts["total"] == {"ready": done + 1, "started": done + 1, "processed": done, "completed": done}
        assert counts["current"] == {"ready": 1, "started": 1, "processed": 0, "completed": 0}  # it begins again
        begin_validation_again(trainer)
        again = self.ask(trainer, "validation, uncounted")["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
        assert again["total"]["ready"] == again["total"]["started"] == again["total"]["completed"]


def test_lightning_counts_as_is_believed() -> None:
    watch = Watch()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        accumulate_grad_batches=2,
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Toy(), DataLoader(torch.ones(8, 1), 2), DataLoader(torch.ones(4, 1), 2))
    assert watch.asked == {"epoch", "batch", "validation", "validation, uncounted"}
    trainer.save_checkpoint("end.ckpt")
    checkpoint = torch.load("end.ckpt", weights_only=True)
    assert (place_in_epoch(checkpoint), is_within_epoch(checkpoint)) == ((2, 0), False)
    Path("end.ckpt").unlink()
