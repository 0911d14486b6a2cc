"""What the tests make their world of."""

from pathlib import Path

import numpy as np
from PIL import Image

CONFIGS = Path(__file__).parents[1] / "configs"


def write_ball(path: Path, radius: float, color: tuple[int, int, int]) -> None:
    y, x = np.mgrid[-7.5:8, -7.5:8]
    opacity = (radius - np.hypot(x, y)[..., None]).clip(0, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((255 + opacity * (np.array(color) - 255)).astype(np.uint8)).save(path, quality=95)


def tiny(stage: str, root: Path, *more: str, config: Path = CONFIGS / "vae.yaml") -> list[str]:
    """Arguments of train.py for the report's VAE in miniature: 16 px, 4 latents, 2 epochs of 4 steps, float32."""
    return [
        stage,
        f"--config={config}",
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
