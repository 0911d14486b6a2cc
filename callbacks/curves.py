"""Loss curves, train against validation, as one chart that grows with the run."""

import math
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from PIL import Image

from callbacks.media import media_folder, publish
from callbacks.schedule import is_due
from colorization.colorizer import BASELINES


class LogCurves(Callback):
    """Chart every metric that is logged for both train and val, by epoch: ``media/curves.png``.

    Args:
        every_n_epochs: epochs from one chart to the next; the last of ``max_epochs`` always gets one.

    Raises:
        ValueError: if ``every_n_epochs`` is not positive.
    """

    def __init__(self, every_n_epochs: int = 1) -> None:
        if every_n_epochs < 1:
            raise ValueError(f"LogCurves: every_n_epochs is {every_n_epochs}, must be 1 or more.")
        self.every_n_epochs = every_n_epochs
        self.history: dict[str, list[tuple[int, float]]] = {}  # by metric: (epoch, value)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.media = media_folder(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._record(trainer, "val/")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._record(trainer, "train/")
        has_both = any(name.startswith("val/") for name in self.history)
        if trainer.is_global_zero and has_both and is_due(trainer, self.every_n_epochs):
            caption = f"training against validation, up to epoch {trainer.current_epoch}"
            publish(draw_curves(self.history), self.media / "curves.png", trainer, "curves", caption)

    def _record(self, trainer: Trainer, stage: str) -> None:
        for name, value in trainer.callback_metrics.items():  # the other stage's last values are there too
            if name.startswith(stage) and not name.endswith("_step"):  # that is only the last batch's
                self.history.setdefault(name, []).append((trainer.current_epoch, value.item()))

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = state_dict["history"]


def draw_curves(history: dict[str, list[tuple[int, float]]]) -> Image.Image:
    """Draw a panel for each ``train/<term>`` that has a ``val/<term>``; values come as lists of (epoch, value).

    The loss gets four times the space. A dotted line marks the epoch with the least ``val/loss``, the best checkpoint.
    Dashed lines are the two baselines of a colorizer.
    """
    terms = [name.removeprefix("train/") for name in history if name.startswith("train/")]
    terms = [term for term in terms if f"val/{term}" in history and (term == "loss" or _has_news(history, term))]
    terms.sort(key=lambda term: term != "loss")  # which comes first
    best, _ = min(history["val/loss"], key=lambda point: math.inf if math.isnan(point[1]) else point[1])
    rows = 2 + math.ceil(len(terms[1:]) / 2)
    width, height = 8, 2.5 * rows  # narrow, so that the text can be read where the chart is small
    figure = Figure(figsize=(width, height), dpi=100)
    # in inches; Matplotlib's own layouts draw everything twice
    figure.subplots_adjust(0.8 / width, 0.6 / height, 1 - 0.2 / width, 1 - 0.4 / height, wspace=0.3, hspace=0.45)
    places = figure.add_gridspec(rows, 2)
    for number, term in enumerate(terms):
        axes = figure.add_subplot(places[2 + (number - 1) // 2, (number - 1) % 2] if number else places[:2, :])
        for stage in ("train", "val"):
            axes.plot(*zip(*history[f"{stage}/{term}"], strict=True), marker=".", label=stage)
        for baseline, color in zip(BASELINES, ("black", "brown"), strict=True):
            if known := history.get(f"val/{baseline}_{term}"):
                axes.axhline(known[-1][1], color=color, linestyle="--", label=baseline)
        axes.axvline(best, color="gray", linestyle=":", label=f"best: epoch {best}")
        # on a linear axis the first epoch would flatten all others; a logarithmic one cannot show 0 or less
        is_log = min(_values(history, term)) > 0
        axes.set(title=term, xlabel="epoch", yscale="log" if is_log else "linear")
        low, high = axes.get_ylim()
        is_wide = is_log and high > 10 * low
        axes.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)) if is_wide else MaxNLocator(5))
        axes.yaxis.set(major_formatter="{x:g}", minor_locator=NullLocator())
        axes.xaxis.set(major_locator=MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _values(history: dict[str, list[tuple[int, float]]], term: str) -> list[float]:
    return [value for stage in ("train", "val") for _, value in history[f"{stage}/{term}"]]


def _has_news(history: dict[str, list[tuple[int, float]]], term: str) -> bool:
    """Whether a term is neither a constant nor the loss itself under another name."""
    values = _values(history, term)
    return max(values) - min(values) > 1e-6 * abs(max(values)) and history[f"train/{term}"] != history.get("train/loss")
