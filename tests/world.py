"""The building blocks of the tests' small world."""

import csv
import io
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from wandb.util import get_core_path

CONFIGS = Path(__file__).parents[1] / "configs"


def live_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin a test or a shared fixture: in its own folder, without W&B, with one thread and a fixed seed."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")  # restored after the test, which may hide all GPUs
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PIGMENT_CACHE", str(folder / "cache"))
    monkeypatch.setenv("PIGMENT_TRACEBACK", "1")  # a failing test shows an unexpected error
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_X_SAVE_REQUIREMENTS", "false")  # listing all packages takes half a second of each run
    torch.set_num_threads(1)
    torch.manual_seed(0)


def write_ball(path: Path, radius: float, color: tuple[int, int, int]) -> None:
    y, x = np.mgrid[-7.5:8, -7.5:8]
    opacity = (radius - np.hypot(x, y)[..., None]).clip(0, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((255 + opacity * (np.array(color) - 255)).astype(np.uint8)).save(path, quality=95)


def write_fruits(root: Path) -> Path:
    """Balls on white, 16 x 16, laid out as Fruits-360 is: 14 to train on, 7 to test."""
    for part, numbers in {"Training": (7, 7), "Test": (4, 3)}.items():
        for kind, number, color in zip(("Lime", "Orange"), numbers, ((120, 200, 60), (250, 150, 20)), strict=True):
            for index in range(number):
                radius = 3 + 0.6 * index + 0.3 * (part == "Test")
                write_ball(root / part / kind / f"{index}_100.jpg", radius, color)
    return root


def write_painting(path: Path, horizon: float, rng: np.random.Generator) -> None:
    """16 x 24: a light blue sky above a dark green field."""
    is_sky = np.arange(16)[:, None, None] < 16 * horizon
    picture = np.where(is_sky, (150, 190, 240), (40, 80, 30)) + rng.normal(0, 8, (16, 24, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path, quality=95)


def write_paintings(root: Path) -> Path:
    """Skies over fields, 16 x 24, laid out as Kaggle's art images are: 14 to train on, 6 to validate."""
    rng = np.random.default_rng(0)
    for part, number in {"training_set": 14, "validation_set": 6}.items():
        for index in range(number):
            write_painting(root / part / "painting" / f"{index}.jpg", rng.uniform(0.3, 0.7), rng)
    return root


def bomb(side: int) -> bytes:
    """A PNG of a few bytes whose header promises far more data than follows."""
    file = io.BytesIO()
    Image.new("1", (16, 16)).save(file, "PNG")
    data = bytearray(file.getvalue())
    data[16:24] = side.to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def write_bad_files(root: Path, whole: bytes) -> dict[str, str]:
    """Write files that are named like images but cannot be used, and return what the manifest should say about each."""
    (root / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "empty.jpg").write_bytes(b"")
    (root / "text.jpg").write_text("I am not an image")
    (root / "bomb.png").write_bytes(bomb(20_000))
    (root / "large.png").write_bytes(bomb(9_400))  # Pillow would read it, into 265 MB
    os.mkfifo(root / "pipe.jpg")
    Image.new("RGB", (1, 1)).save(root / "one pixel.png")
    (root / "dangling.png").symlink_to("nowhere.png")
    (root / "itself.png").symlink_to("itself.png")
    (root / "folder.png").mkdir()
    return {
        "truncated.jpg": "truncated",
        "empty.jpg": "empty file",
        "text.jpg": "not an image",
        "bomb.png": "decompression bomb",
        "large.png": "9400 x 9400 pixels, may have 80,000,000",
        "pipe.jpg": "a pipe",
        "one pixel.png": "1 x 1 pixels, needs 8 x 8",
        "dangling.png": "no such file",
        "itself.png": "symbolic links",
    }


def damaged_exif(orientation: int) -> bytes:
    """EXIF with text as its resolution."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = orientation, "no number"
    return exif.tobytes().replace(b"\x01\x0e\x00\x02", b"\x01\x1a\x00\x02")  # a description becomes a resolution


MINIATURE = {
    "vae.yaml": "--model.init_args.latent_dim=4",
    "vae_calibrated.yaml": "--model.init_args.latent_dim=4",
    "vae_residual.yaml": "--model.init_args.warmup_steps=1",
    "7_resnet_adam.yaml": "--model.init_args.weights=null",
    "10_palette.yaml": "--model.init_args.warmup_steps=1",
}


def tiny(stage: str, root: Path, *more: str, config: Path = CONFIGS / "vae.yaml") -> list[str]:
    """train.py's arguments for a config in miniature: 16 px, 2 epochs of 4 steps, float32, 4 latents."""
    return [
        stage,
        f"--config={config}",
        f"--data.init_args.root={root}",
        "--data.init_args.size=16",
        "--data.init_args.batch_size=4",
        *([MINIATURE[config.name]] if config.name in MINIATURE else []),
        "--trainer.accelerator=cpu",
        "--trainer.precision=32-true",
        "--trainer.log_every_n_steps=1",
        *(["--trainer.max_epochs=2"] if stage == "fit" else []),
        *more,
    ]


def last(run: Any) -> Path:
    """Return the last checkpoint of a run."""
    return run.run_folder / "checkpoints" / "last.ckpt"


def metrics(folder: Path) -> list[dict[str, str]]:
    """Return the rows of a run's ``metrics.csv``."""
    with (folder / "metrics.csv").open() as lines:
        return list(csv.DictReader(lines))


def read_wandb(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """All records of an offline run by type, as W&B's own tool reads them; stops included, in order of time."""
    records: dict[str, list[dict[str, Any]]] = {}
    for log in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        records.setdefault("folder", []).append({"path": log.parent / "files"})
        command = [get_core_path(), "leet", "inspect", "--no-observability", "--json", "--run-file", str(log.resolve())]
        command += [str(log.resolve().parents[1])]  # what python -m wandb starts, 1.5 s later
        for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
            record = json.loads(line)
            records.setdefault(record["type"], []).append(record[record["type"]])
    return records
