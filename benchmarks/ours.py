"""``train.py fit`` with a stopwatch: python -m benchmarks.ours A [more options of train.py]"""

import sys
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

import train
from benchmarks.systems import DEVICE, SYSTEMS, WARM_UP, Figures, Measured, say, synchronize

STARTED = time.perf_counter()  # after all imports


class Stopwatch(Callback):
    """Times the start-up, the steps of the first epoch, each from its start to the start of the next, and its end.

    Raises:
        Measured: when the second epoch starts.
    """

    def __init__(self) -> None:
        self.figures = Figures()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        now = time.perf_counter()
        if trainer.current_epoch:
            raise Measured({**self.figures, "epoch_end_s": now - self.last_step})
        if batch_idx == 0:
            self.figures["first_step_s"] = now - STARTED
        elif batch_idx == WARM_UP:
            synchronize()
            self.begun, self.num_images = time.perf_counter(), len(batch) * trainer.world_size
        elif batch_idx == trainer.num_training_batches - 1:
            synchronize()
            speed = (batch_idx - WARM_UP) * self.num_images / (time.perf_counter() - self.begun)
            num_images = len(trainer.datamodule.images("train"))  # type: ignore[attr-defined]
            self.figures |= {"images_per_second": speed, "training_s": num_images / speed}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.last_step = time.perf_counter()


def main(name: str, *more: str) -> None:
    limit = f"--trainer.limit_train_batches={WARM_UP + SYSTEMS[name].num_steps + 1}"
    rank_zero_only(say)(**fit(name, limit, "--trainer.callbacks+=benchmarks.ours.Stopwatch", *more))


def fit(name: str, *more: str) -> Figures:
    """Run train.py until a callback has measured it."""
    config = Path(train.__file__).parent / "configs" / SYSTEMS[name].config
    device = (f"--trainer.accelerator={DEVICE.type}", "--trainer.devices=1")
    try:
        train.main(["fit", f"--config={config}", *device, *SYSTEMS[name].options, *more])
    except Measured as measured:
        return measured.figures
    raise RuntimeError("the run ended before it was measured")


if __name__ == "__main__":
    main(*sys.argv[1:])
