import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from callbacks import LogCurves
from callbacks.curves import draw_curves
from tests.world import metrics, tiny
from train import main


def test_curves_are_the_metrics_of_each_epoch(fruits: Path) -> None:
    run = main(tiny("fit", fruits, "--trainer.max_epochs=3"))
    (curves,) = (callback for callback in run.trainer.callbacks if isinstance(callback, LogCurves))
    rows = metrics(run.run_folder)
    for name in ("train/loss", "train/reconstruction", "train/kl", "val/loss", "val/reconstruction", "val/kl"):
        logged = [(int(row["epoch"]), float(row[name])) for row in rows if row[name]]
        assert np.array(curves.history[name]) == pytest.approx(np.array(logged))
        assert [epoch for epoch, _ in logged] == [0, 1, 2]
    with Image.open(run.run_folder / "media" / "curves.png") as chart:
        assert np.array_equal(chart, draw_curves(curves.history))


@pytest.mark.filterwarnings("ignore:.*could not find the monitored key")  # as there is no val/loss
def test_validation_now_and_then_is_drawn_where_it_was_and_none_is_no_error(fruits: Path) -> None:
    run = main(tiny("fit", fruits, "--trainer.max_epochs=5", "--trainer.check_val_every_n_epoch=2"))
    (curves,) = (callback for callback in run.trainer.callbacks if isinstance(callback, LogCurves))
    assert [epoch for epoch, _ in curves.history["val/loss"]] == [1, 3]
    assert [epoch for epoch, _ in curves.history["train/loss"]] == [0, 1, 2, 3, 4]
    drawn = sorted(path.name for path in (run.run_folder / "media" / "samples").iterdir())
    assert drawn == ["epoch_0001.png", "epoch_0003.png"]  # due in epochs 0 and 4, which have no validation
    assert run.model.codes is not None
    run = main(tiny("fit", fruits, "--trainer.limit_val_batches=0"))
    assert not (run.run_folder / "media" / "curves.png").exists()


def test_each_term_has_a_panel_with_two_lines() -> None:
    falling, rising = [(0, 3.0), (1, 1.0)], [(0, 1.0), (1, 3.0)]
    one = draw_curves({"train/loss": falling, "val/loss": rising, "train/loss_step": falling})
    two = draw_curves({"train/loss": falling, "val/loss": rising, "train/kl": rising, "val/kl": falling})
    assert two.size == (one.width, 1.5 * one.height)  # the loss is as wide as two others, and as high
    same = draw_curves({"train/loss": falling, "val/loss": rising, "train/mse": falling, "val/mse": rising})
    assert same.size == one.size  # an error that is the loss itself needs no panel of its own
    flat = draw_curves({"train/loss": falling, "val/loss": rising, "train/sigma": [(0, 1.0)], "val/sigma": [(0, 1.0)]})
    assert flat.size == one.size  # nor does a constant
    colors = {tuple(color) for color in np.asarray(one.convert("RGB")).reshape(-1, 3)}
    assert {(31, 119, 180), (255, 127, 14)} <= colors  # both lines


def test_baselines_are_lines() -> None:
    falling, flat = [(0, 3.0), (1, 1.0)], [(0, 2.0), (1, 2.0)]
    history = {"train/loss": falling, "val/loss": falling}
    brown = [
        np.array([165, 42, 42]) == np.asarray(draw_curves(some).convert("RGB"))
        for some in (history, history | {"val/gray_loss": flat, "val/mean_ab_loss": flat})
    ]
    without, with_baselines = (where.all(axis=2).any(axis=0).mean() for where in brown)
    assert without == 0
    assert with_baselines > 0.4  # of the width, as it is dashed
    assert draw_curves(history | {"val/gray_loss": flat}).tobytes() != draw_curves(history).tobytes()


def test_a_term_below_zero_is_drawn_too() -> None:
    falling, rising = [(0, 3.0), (1, 1.0)], [(0, -3.0), (1, 1.0)]
    history = {"train/loss": falling, "val/loss": falling, "train/elbo": rising, "val/elbo": [(0, -2.0), (1, -1.0)]}
    chart = draw_curves(history)
    panel = chart.crop((0, 2 * chart.height // 3, *chart.size)).convert("RGB")
    colors = {tuple(color) for color in np.asarray(panel).reshape(-1, 3)}
    assert {(31, 119, 180), (255, 127, 14)} <= colors  # both lines


@pytest.mark.parametrize("best", [1, 3])
def test_the_epoch_of_the_best_checkpoint_is_marked(best: int) -> None:
    values = [(epoch, math.nan if epoch == 2 else 1.0 + abs(epoch - best)) for epoch in range(5)]
    chart = np.asarray(draw_curves({"train/loss": values, "val/loss": values}).convert("L"))[:, 80:-20]  # the axes
    dots = np.flatnonzero(((chart[100:] > 120) & (chart[100:] < 140)).sum(axis=0) > 100)
    margin = 0.05 / 1.1  # Matplotlib's, beside the first and the last epoch
    assert dots / chart.shape[1] == pytest.approx(margin + (1 - 2 * margin) * best / 4, abs=0.01)
