"""The smallest world in which everything runs: a few tiny fruits, one thread, no network, nothing outside tmp_path."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import wandb

from tests.world import write_ball, write_painting

os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = "off"  # Lightning 2.6 calls it as before its version 4.49


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
    wandb.finish()


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


@pytest.fixture
def paintings(tmp_path: Path) -> Path:
    """Skies over fields, 16 x 24, laid out as Kaggle's art images are: 14 to train on, 6 to validate."""
    root = tmp_path / "paintings"
    rng = np.random.default_rng(0)
    for part, number in {"training_set": 14, "validation_set": 6}.items():
        for index in range(number):
            write_painting(root / part / "painting" / f"{index}.jpg", rng.uniform(0.3, 0.7), rng)
    return root


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where pre-trained weights are looked for, in vain as long as nothing is put there: the folder."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # is closed
    return tmp_path / "hub" / "checkpoints"
