"""The smallest world in which everything runs: a few tiny fruits, one thread, no network, nothing outside tmp_path."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import wandb
from PIL import Image

os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = "off"  # Lightning 2.6 calls it as before its version 4.49

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture(autouse=True)
def _world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setenv("PIGMENT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    wandb.teardown()  # it would keep this test's settings and working folder


@pytest.fixture
def fruits(tmp_path: Path) -> Path:
    """Balls on white, 16 x 16, laid out as Fruits-360 is: 14 to train on, 7 to test."""
    root = tmp_path / "fruits"
    for part, numbers in {"Training": (7, 7), "Test": (4, 3)}.items():
        for kind, number, color in zip(("Lime", "Orange"), numbers, ((120, 200, 60), (250, 150, 20)), strict=True):
            for index in range(number):
                radius = 3 + 0.6 * index + 0.3 * (part == "Test")
                write_ball(root / part / kind / f"{index}_100.jpg", radius, color)
    return root


def write_ball(path: Path, radius: float, color: tuple[int, int, int]) -> None:
    y, x = np.mgrid[-7.5:8, -7.5:8]
    opacity = (radius - np.hypot(x, y)[..., None]).clip(0, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((255 + opacity * (np.array(color) - 255)).astype(np.uint8)).save(path, quality=95)


def tiny(stage: str, root: Path, *more: str) -> list[str]:
    """Arguments of train.py for the report's VAE in miniature: 16 px, 4 latents, 2 epochs of 4 steps, float32."""
    return [
        stage,
        f"--config={CONFIGS / 'vae.yaml'}",
        f"--data.init_args.root={root}",
        "--data.init_args.size=16",
        "--data.init_args.batch_size=4",
        "--model.init_args.latent_dim=4",
        "--trainer.accelerator=cpu",
        "--trainer.precision=32-true",
        "--trainer.log_every_n_steps=1",
        *(["--trainer.max_epochs=2"] if stage == "fit" else []),
        *more,
    ]
