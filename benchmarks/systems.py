"""What is measured and how: three networks, their settings, and a stopwatch around training steps."""

import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colorization.color import LAB_SCALE, rgb_to_lab
from colorization.networks import DeepNet, ShallowNet
from datamodules.demo import demo_fruits, demo_paintings
from system.hardware import best_device
from vae.elbo import kl_divergence, squared_error
from vae.networks import ConvDecoder, ConvEncoder

WARM_UP = 3  # steps before the measured ones
LATENT_DIM = 2048  # the VAE config's
DEVICE = best_device()


class System(NamedTuple):
    config: str  # size and batch_size are its settings
    size: int
    batch_size: int
    num_steps: int  # measured ones: 5 to 10 s on two cores, and no more than in an epoch
    files: Callable[[], list[Path]]  # the training images


SYSTEMS = {
    "A": System("colorization/4_shallow_adam.yaml", 256, 10, 50, lambda: _files(demo_paintings(), "training_set")),
    "B": System("colorization/6_deep_adam.yaml", 256, 10, 6, lambda: _files(demo_paintings(), "training_set")),
    "VAE": System("vae.yaml", 100, 64, 24, lambda: _files(demo_fruits(), "Training")),
}


class Colorizing(nn.Module):
    """A colorizer's computation without Lightning."""

    scale: Tensor

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("scale", torch.tensor(LAB_SCALE).view(3, 1, 1), persistent=False)

    def loss(self, images: Tensor) -> Tensor:
        lightness, chroma = (rgb_to_lab(images) / self.scale).split([1, 2], dim=1)
        return F.mse_loss(self.net(lightness).float(memory_format=torch.contiguous_format), chroma)


class VAE(nn.Module):
    """The ConvVAE's computation without Lightning."""

    def __init__(self, image_size: int, latent_dim: int) -> None:
        super().__init__()
        self.encoder, self.decoder = ConvEncoder(image_size, latent_dim), ConvDecoder(image_size, latent_dim, "none")

    def loss(self, images: Tensor) -> Tensor:
        mean, log_variance = (output.float() for output in self.encoder(images))
        latents = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        return squared_error(self.decoder(latents), images).mean() + kl_divergence(mean, log_variance).mean()


def make(name: str) -> Colorizing | VAE:
    if name == "VAE":
        return VAE(SYSTEMS[name].size, LATENT_DIM)
    return Colorizing({"A": ShallowNet, "B": DeepNet}[name]())


def images_per_second(name: str, step: Callable[[], object]) -> float:
    """Time ``num_steps`` calls after a few warm-up calls."""
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
    """Print figures and this process's peak memory for ``__main__.py`` to read."""
    print(json.dumps({**figures, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}), flush=True)


def _files(root: Path, folder: str) -> list[Path]:
    return sorted(path for path in (root / folder).rglob("*") if path.is_file())
