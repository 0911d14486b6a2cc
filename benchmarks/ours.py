"""``train.py fit`` with a stopwatch: python -m benchmarks.ours A [more options of train.py]"""

import sys
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

import train
from benchmarks.systems import DEVICE, SYSTEMS, WARM_UP, say, synchronize

STARTED = time.perf_counter()  # after all imports


class Stopwatch(Callback):
    """Times steps, each from its start to the next one's, plus the start-up before and the end of the epoch after."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.first_step = time.perf_counter() - STARTED
        elif batch_idx == WARM_UP:
            synchronize()
            self.begun, self.num_images = time.perf_counter(), len(batch) * trainer.world_size
        elif batch_idx == trainer.num_training_batches - 1:
            synchronize()
            self.images_per_second = (batch_idx - WARM_UP) * self.num_images / (time.perf_counter() - self.begun)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.last_step = time.perf_counter()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            epoch_end = time.perf_counter() - self.last_step
            say(images_per_second=self.images_per_second, first_step_s=self.first_step, epoch_end_s=epoch_end)


def main(name: str, *more: str) -> None:
    system = SYSTEMS[name]
    config = Path(train.__file__).parent / "configs" / system.config
    train.main(
        [
            "fit",
            f"--config={config}",
            "--trainer.max_epochs=1",
            f"--trainer.accelerator={DEVICE.type}",
            "--trainer.devices=1",
            f"--trainer.limit_train_batches={WARM_UP + system.num_steps + 1}",
            "--trainer.callbacks+=benchmarks.ours.Stopwatch",
            *more,
        ]
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
