"""What precision costs, on images like the demo's."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.demo.fruits import FRUITS, draw_fruit
from epoch_means import EpochMean
from modes import exact_float32
from system.hardware import computes_bfloat16
from tests.world import CONFIGS, metrics, tiny
from train import main


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen demo fruits of each kind, one in four for testing."""
    root = tmp_path_factory.mktemp("demo")
    for number in range(16):
        for index, kind in enumerate(FRUITS):
            path = root / ("Training" if number % 4 else "Test") / kind / f"{number}_100.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw_fruit(kind, np.random.default_rng([index, number]))).save(path, quality=95)
    return root


@pytest.mark.parametrize(
    "config", ["vae", "colorization/4_shallow_adam", "colorization/6_deep_adam", "colorization/10_palette"]
)
@pytest.mark.skipif(not computes_bfloat16("cpu"), reason="this CPU only emulates bfloat16, so train.py uses float32")
def test_bfloat16_ends_the_first_epoch_as_float32_does(config: str, demo: Path) -> None:
    losses: dict[str, list[float]] = {"train/loss": [], "val/loss": []}
    for precision in ("bf16-mixed", "32-true"):
        epoch = ["--data.init_args.size=32", "--data.init_args.batch_size=16", "--trainer.max_epochs=1"]
        given = tiny("fit", demo, *epoch, f"--trainer.precision={precision}", config=CONFIGS / f"{config}.yaml")
        rows = metrics(main(given).run_folder)
        for name, values in losses.items():
            values += [float(row[name]) for row in rows if row[name]]
    for name, within in {"train/loss": 0.02, "val/loss": 0.05}.items():  # a mean over the epoch; one moment
        in_bfloat16, in_float32 = losses[name]
        assert in_bfloat16 != in_float32
        assert in_bfloat16 == pytest.approx(in_float32, rel=within)


def test_in_several_threads_exact_is_exact_and_what_was_set_comes_back() -> None:
    before, found, is_over = torch.get_float32_matmul_precision(), list[str](), threading.Event()

    def compute() -> None:
        with exact_float32("cpu"):
            is_over.wait()
            found.append(torch.get_float32_matmul_precision())

    second = threading.Thread(target=compute)
    torch.set_float32_matmul_precision("high")
    try:
        with exact_float32("cpu"):
            second.start()
            second.join(0.2)  # seconds, in which it would begin
        is_over.set()
        second.join()
        assert found == ["highest"]
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("config", ["vae", "colorization/4_shallow_adam"])
def test_gradients_can_be_clipped_in_bfloat16(config: str, demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adam's steps are as long as the learning rate, whatever the gradients, unless these are far below its epsilon."""
    monkeypatch.setattr("cli.run.computes_bfloat16", lambda accelerator: True)
    clipped = ["--data.init_args.size=16", "--trainer.precision=bf16-mixed", "--trainer.gradient_clip_val=1e-12"]
    before, after = (
        main(tiny("fit", demo, *clipped, f"--trainer.max_epochs={epochs}", config=CONFIGS / f"{config}.yaml"))
        for epochs in (0, 1)
    )
    furthest = 1.1e-4 * after.model.lr * after.trainer.global_step  # epsilon being 1e-8
    for new, old in zip(after.model.parameters(), before.model.parameters(), strict=True):
        assert (new - old).abs().max() < furthest


def test_means_count_beyond_what_bfloat16_can() -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        mean = EpochMean()
    finally:
        torch.set_default_dtype(torch.float32)
    for batch in range(1000):
        mean.update(torch.tensor(64.0 * (batch % 2)), 64)
    assert mean.num_images == 64_000
    assert mean.compute() == 0.5
