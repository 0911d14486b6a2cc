"""What is measured and how: the networks, their settings, and a stopwatch around training steps."""

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vae
from colorization.color import LAB_SCALE, rgb_to_lab
from colorization.encoders import TimmEncoder
from colorization.gamut import displayable_colors, neighbors
from colorization.networks import DeepNet, ResNetNet, ShallowNet
from colorization.palette import loss_terms, vary
from colorization.unet import UNet
from datamodules.demo import demo_fruits, demo_paintings
from system.hardware import best_device
from vae.elbo import MIN_VARIANCE, gaussian_nll, kl_divergence, squared_error

ROOT = Path(__file__).parents[1]
WARM_UP = 3  # steps before the measured ones
DEVICE = best_device()

Figures = dict[str, float]


class Colorizing(nn.Module):
    """A colorizer's computation without Lightning."""

    scale: Tensor

    def __init__(self, net: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.net = net()
        self.register_buffer("scale", torch.tensor(LAB_SCALE).view(3, 1, 1), persistent=False)

    def loss(self, images: Tensor) -> Tensor:
        lightness, chroma = (rgb_to_lab(images) / self.scale).split([1, 2], dim=1)
        return F.mse_loss(self.net(lightness).float(memory_format=torch.contiguous_format), chroma)


class Palette(Colorizing):
    """The palette colorizer's computation without Lightning, on a frozen encoder."""

    colors: Tensor
    nearby: Tensor

    def __init__(self, backbone: str, dropout: float) -> None:
        encoder, colors = TimmEncoder(backbone), displayable_colors()
        super().__init__(partial(UNet, encoder.requires_grad_(False).eval(), encoder.channels, len(colors), dropout))
        self.register_buffer("colors", colors, persistent=False)
        self.register_buffer("nearby", neighbors(colors), persistent=False)

    def loss(self, images: Tensor) -> Tensor:
        lab = rgb_to_lab(images)
        prediction = self.net(vary((lab / self.scale)[:, :1]))
        prediction = prediction._replace(chroma=self.scale[1:] * prediction.chroma)
        return loss_terms(prediction, F.avg_pool2d(lab[:, 1:], 4), self.colors, self.nearby)["loss"]


class VAE(nn.Module):
    """A VAE's computation without Lightning."""

    def __init__(self, kind: type[vae.VAE], image_size: int, **settings: Any) -> None:
        super().__init__()
        model = kind(image_size=image_size, lr=1e-3, **settings)
        self.encoder, self.decoder = model.encoder, model.decoder
        self.num_values, self.likelihood = model.num_values, model.likelihood

    def loss(self, images: Tensor) -> Tensor:
        mean, log_variance = (output.float() for output in self.encoder(images))
        latents = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        error = squared_error(self.decoder(latents), images).mean()
        if self.likelihood == "optimal":
            variance = (error.detach() / self.num_values).clamp(min=MIN_VARIANCE)
            error = gaussian_nll(error, variance, self.num_values)
        return error + kl_divergence(mean, log_variance).mean()


class Measured(BaseException):  # no error, which train.py would turn into a line
    """Ends a run that has been measured."""

    def __init__(self, figures: Figures) -> None:
        super().__init__()
        self.figures = figures


class System(NamedTuple):
    config: str  # which sets size, batch_size, and a VAE's arguments in ``make``
    size: int
    batch_size: int
    num_steps: int  # to measure on a CPU: 5 to 10 s on two cores, and no more than an epoch has
    files: Callable[[], list[Path]]  # the training images
    make: Callable[..., Colorizing | VAE]
    options: tuple[str, ...] = ()  # for train.py
    clip: float | None = None  # norm of the gradients
    average: float | None = None  # decay of the weights' average


def _paintings() -> list[Path]:
    return _files(demo_paintings(), "training_set")


def _fruits() -> list[Path]:
    return _files(demo_fruits(), "Training")


def _files(root: Path, folder: str) -> list[Path]:
    return sorted(path for path in (root / folder).rglob("*") if path.is_file())


BACKBONE = "tf_efficientnet_lite0"
SCRATCH = ("--model.init_args.weights=null",)  # downloads nothing
_calibrated: dict[str, Any] = {"image_size": 100, "latent_dim": 256, "likelihood": "optimal", "activation": "sigmoid"}
_residual: dict[str, Any] = {"image_size": 100, "latent_channels": 10, "warmup_steps": 100}
SYSTEMS = {
    "A": System("colorization/4_shallow_adam.yaml", 256, 10, 50, _paintings, partial(Colorizing, ShallowNet)),
    "B": System("colorization/6_deep_adam.yaml", 256, 10, 6, _paintings, partial(Colorizing, DeepNet)),
    "ResNet": System(
        "colorization/7_resnet_adam.yaml", 256, 10, 12, _paintings, partial(Colorizing, ResNetNet), SCRATCH
    ),
    "palette": System(
        "colorization/10_palette.yaml",
        128,
        64,
        10,
        _paintings,
        partial(Palette, backbone=BACKBONE, dropout=0.35),
        clip=1.0,
        average=0.998,
    ),
    "VAE": System("vae.yaml", 100, 64, 24, _fruits, partial(VAE, vae.ConvVAE, image_size=100, latent_dim=2048)),
    "calibrated": System("vae_calibrated.yaml", 100, 64, 24, _fruits, partial(VAE, vae.ConvVAE, **_calibrated)),
    "residual": System("vae_residual.yaml", 100, 32, 48, _fruits, partial(VAE, vae.ResidualVAE, **_residual)),
}


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
    """Print figures and this process's peak memory for :func:`run` to read, on a line below the progress bar."""
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\n{json.dumps({**figures, 'peak_mb': peak_mb})}", flush=True)


def run(module: str, *args: str, **environment: str) -> Figures:
    """Run a module and return the figures that it prints last."""
    done = subprocess.run(
        [sys.executable, "-m", module, *args],
        cwd=ROOT,
        env={**os.environ, "WANDB_MODE": "offline", **environment},
        capture_output=True,
        text=True,
    )
    said = [line for line in done.stdout.splitlines() if line.startswith('{"')]
    if done.returncode or not said:
        raise SystemExit(f"python -m {module} {' '.join(args)} failed:\n{done.stderr[-2000:]}")
    return json.loads(said[-1])


def multiply(files: list[Path], root: Path, number: int) -> Path:
    """Write ``number`` images, no two with the same bytes, to stand in for real ones."""
    root.mkdir(parents=True)
    contents = [path.read_bytes() for path in files[:1000]]
    for index in range(number):
        (root / f"{index}.jpg").write_bytes(contents[index % len(contents)] + str(index).encode())
    return root


def machine() -> dict[str, str]:
    cpuinfo = Path("/proc/cpuinfo")
    models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
    return {
        "processor": f"{os.cpu_count()} x {models[0] if models else platform.processor()}",
        "GPU": gpus() if DEVICE.type == "cuda" else "none",
        "Python": platform.python_version(),
        "torch": torch.__version__,
    }


def gpus() -> str:
    name = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    if not shutil.which("nvidia-smi"):
        return name
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return f"{name}, driver {subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]}"
