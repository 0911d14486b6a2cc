"""What the tests make their world of."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CONFIGS = Path(__file__).parents[1] / "configs"


def write_ball(path: Path, radius: float, color: tuple[int, int, int]) -> None:
    y, x = np.mgrid[-7.5:8, -7.5:8]
    opacity = (radius - np.hypot(x, y)[..., None]).clip(0, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((255 + opacity * (np.array(color) - 255)).astype(np.uint8)).save(path, quality=95)


def write_painting(path: Path, horizon: float, rng: np.random.Generator) -> None:
    """16 x 24: a light blue sky above a dark green field."""
    is_sky = np.arange(16)[:, None, None] < 16 * horizon
    picture = np.where(is_sky, (150, 190, 240), (40, 80, 30)) + rng.normal(0, 8, (16, 24, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path, quality=95)


MINIATURE = {"vae.yaml": "--model.init_args.latent_dim=4", "7_resnet_adam.yaml": "--model.init_args.weights=null"}


def tiny(stage: str, root: Path, *more: str, config: Path = CONFIGS / "vae.yaml") -> list[str]:
    """Arguments of train.py for a config in miniature: 16 px, 2 epochs of 4 steps, float32; 4 latents."""
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


def read_wandb(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """All that a run in offline mode holds, by type of record, as W&B's own tool reads it; stops included, by time."""
    records: dict[str, list[dict[str, Any]]] = {}
    for log in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        records.setdefault("folder", []).append({"path": log.parent / "files"})
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
        for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
            record = json.loads(line)
            records.setdefault(record["type"], []).append(record[record["type"]])
    return records
