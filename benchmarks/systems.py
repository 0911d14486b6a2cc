"""What is measured, and how: the three networks, their settings, and a stopwatch around training steps."""

import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from colorization.networks import DeepNet, ShallowNet
from datamodules.demo_fruits import demo_fruits
from datamodules.demo_paintings import demo_paintings
from vae.elbo import kl_divergence, squared_error
from vae.networks import ConvDecoder, ConvEncoder

WARM_UP = 3  # steps before the measured ones
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class System(NamedTuple):
    config: str  # of which the following are the settings
    size: int
    batch_size: int
    num_steps: int  # measured: some 10 s on two cores
    files: Callable[[], list[Path]]  # the training images


SYSTEMS = {
    "A": System("colorization/4_shallow_adam.yaml", 256, 10, 80, lambda: _files(demo_paintings(), "training_set")),
    "B": System("colorization/6_deep_adam.yaml", 256, 10, 6, lambda: _files(demo_paintings(), "training_set")),
    "VAE": System("vae.yaml", 100, 64, 24, lambda: _files(demo_fruits(), "Training")),
}


class VAE(nn.Module):
    """The ConvVAE's computation without Lightning."""

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.encoder, self.decoder = ConvEncoder(image_size, 2048), ConvDecoder(image_size, 2048)

    def loss(self, images: Tensor) -> Tensor:
        mean, log_variance = (output.float() for output in self.encoder(images))
        latents = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        return squared_error(self.decoder(latents), images).mean() + kl_divergence(mean, log_variance).mean()


def make_net(name: str) -> nn.Module:
    return {"A": ShallowNet, "B": DeepNet, "VAE": lambda: VAE(SYSTEMS["VAE"].size)}[name]()


def images_per_second(name: str, step: Callable[[], object]) -> float:
    """Time ``num_steps`` calls, after a few to warm up."""
    for _ in range(WARM_UP):
        step()
    synchronize()
    start = time.perf_counter()
    for _ in range(SYSTEMS[name].num_steps):
        step()
    synchronize()
    return SYSTEMS[name].batch_size * SYSTEMS[name].num_steps / (time.perf_counter() - start)


def synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def say(**figures: float) -> None:
    """Print figures, and the most memory that this process has had, for ``__main__.py`` to read."""
    print(json.dumps({**figures, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}), flush=True)


def _files(root: Path, folder: str) -> list[Path]:
    return sorted(path for path in (root / folder).rglob("*") if path.is_file())
