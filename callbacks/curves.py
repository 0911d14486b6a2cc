"""Loss curves, train against validation, as one chart that grows with the run."""

import math
from io import BytesIO
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from callbacks.media import media_folder, publish


class LogCurves(Callback):
    """Chart every metric that is logged for both train and val, by epoch: ``media/curves.png``."""

    def __init__(self) -> None:
        self.history: dict[str, list[tuple[int, float]]] = {}  # by metric: (epoch, value)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.media = media_folder(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._record(trainer, "val/")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._record(trainer, "train/")
        if trainer.is_global_zero and any(name.startswith("val/") for name in self.history):
            publish(draw_curves(self.history), self.media / "curves.png", trainer, "curves")

    def _record(self, trainer: Trainer, stage: str) -> None:
        for name, value in trainer.callback_metrics.items():  # the other stage's last values are there too
            if name.startswith(stage) and not name.endswith("_step"):  # only the last batch's
                self.history.setdefault(name, []).append((trainer.current_epoch, value.item()))

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = state_dict["history"]


def draw_curves(history: dict[str, list[tuple[int, float]]]) -> Image.Image:
    """Draw a panel for each ``train/<term>`` that has a ``val/<term>``; values come as lists of (epoch, value)."""
    terms = [name.removeprefix("train/") for name in history if name.startswith("train/")]
    terms = [term for term in terms if f"val/{term}" in history]
    # an error that is the loss needs no second panel
    terms = [term for term in terms if term == "loss" or history[f"train/{term}"] != history.get("train/loss")]
    columns, rows = min(3, len(terms)), math.ceil(len(terms) / 3)
    figure = Figure(figsize=(5 * columns, 4 * rows), layout="constrained", dpi=100)
    for place, term in enumerate(terms, start=1):
        axes = figure.add_subplot(rows, columns, place)
        for stage in ("train", "val"):
            axes.plot(*zip(*history[f"{stage}/{term}"], strict=True), marker=".", label=stage)
        axes.set(title=term, xlabel="epoch", yscale="log")  # on a linear axis the first epoch would flatten all others
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.legend()
    png = BytesIO()
    figure.savefig(png)
    return Image.open(png)
