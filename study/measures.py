"""What finished models make of the same held-out images."""

import socket
import statistics
import sys
from collections import defaultdict
from functools import cache, partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.memory import is_oom_error
from torch import Tensor
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
from torchvision.models import AlexNet_Weights
from tqdm import tqdm

from colorization import Colorizer
from colorization.color import rgb_to_lab
from colorization.metrics import ciede2000
from datamodules.folder import FolderDataModule, spread_out
from resuming.checkpoints import data_of, load_model
from study.claims import Figure
from study.runs import Run
from system.errors import PigmentError, reason, shown
from system.hardware import best_device
from vae import VAE

LPIPS_FROM = 31  # pixels; AlexNet needs so many
PATIENCE = 10.0  # seconds to wait for the network


class Tested(NamedTuple):
    """A finished run, its model, and what ``train.py test`` measures."""

    run: Run
    model: Any  # at the end of training; kept for the first seed only, else None
    metrics: dict[str, float]  # without the prefix test/


class Family(NamedTuple):
    """All colorizers, or all VAEs, tested on the same images."""

    data: FolderDataModule
    models: dict[str, list[Tested]]  # by name, then by seed


def measure(runs: list[Run], left_out: dict[str, str]) -> dict[type[LightningModule], Family]:
    """Test every finished run on its family's images, those of its first run; add the others to ``left_out``."""
    families: dict[type[LightningModule], Family] = {}
    lpips = cache(partial(load_lpips, left_out))
    for run in tqdm(runs, "Testing", unit=" models"):
        try:
            run.check()
            model, checkpoint = load_model(run.checkpoint, LightningModule)
            kind = Colorizer if isinstance(model, Colorizer) else VAE
            family = families.get(kind) or Family(data_of(checkpoint), {})
            others = family.models.get(run.model, [])
            first = next(iter(family.models.values()))[0].run if family.models else run
            if run.images != first.images:
                raise PigmentError(f"trained on different images ({run.images}) than {first} ({first.images})")
            if others and run.recipe != others[0].run.recipe:
                raise PigmentError(f"trained differently from {others[0].run}")
            metrics = test(model, run, family.data)
            if isinstance(model, Colorizer):
                metrics |= colorfulness_ratios(metrics)
                if network := lpips(family.data.size):
                    metrics |= perceptual_differences(model, family.data, network)
            tested = Tested(run, None if others else model, metrics)
        except Exception as error:  # a damaged folder, or one from another version, raises all sorts of errors
            if isinstance(error, MemoryError) or is_oom_error(error):  # which most others would meet, too
                raise
            left_out[str(run)] = reason(error)
        else:
            family.models[run.model] = [*others, tested]
            families[kind] = family
    return families


def test(model: LightningModule, run: Run, data: FolderDataModule) -> dict[str, float]:
    device = model.device
    trainer = Trainer(
        accelerator=device.type,
        devices=1,
        precision=run.config["trainer"]["precision"],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    (metrics,) = trainer.test(model, datamodule=data, verbose=False)
    model.to(device)
    return {name.removeprefix("test/"): value for name, value in metrics.items()}


def colorfulness_ratios(metrics: dict[str, float]) -> dict[str, float]:
    """Return how colorful the images are relative to the truth, for all that ``test`` measures."""
    ratios = {}
    for name, value in metrics.items():
        if name.endswith("colorfulness") and (truth := value - metrics[f"{name}_difference"]):
            ratios[f"{name}_ratio"] = value / truth
    return ratios


def load_lpips(left_out: dict[str, str], size: int) -> LearnedPerceptualImagePatchSimilarity | None:
    """Load the network that measures LPIPS, or say on the terminal and in ``left_out`` why there is none."""
    url, timeout = AlexNet_Weights.DEFAULT.url, socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        if size >= LPIPS_FROM:
            return LearnedPerceptualImagePatchSimilarity("alex", normalize=True).to(best_device())
        why = f"it needs images of {LPIPS_FROM} px or more"
    except (OSError, RuntimeError, UnpicklingError, EOFError) as error:
        path = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
        why = f"AlexNet's weights could not be downloaded or read ({reason(error)}). Put {url} at {path}"
    finally:
        socket.setdefaulttimeout(timeout)
    left_out["lpips"] = why
    tqdm.write(shown(f"Left out: lpips, as {why}"), file=sys.stderr)
    return None


@torch.no_grad()
def perceptual_differences(
    model: Colorizer, data: FolderDataModule, lpips: LearnedPerceptualImagePatchSimilarity
) -> dict[str, float]:
    """Return the LPIPS (Zhang et al. 2018, arXiv:1801.03924) of a model and the baselines, over all held-out images."""
    scores: dict[str, list[Tensor]] = defaultdict(list)
    for batch in data.test_dataloader():
        images = data.on_after_batch_transfer(batch.to(model.device), 0)
        lightness, chroma = model.split(images)
        scores["lpips"] += len(images) * [lpips(model.colorize(images), images)]
        for name, constant in {
            "gray": torch.zeros_like(chroma),
            "mean_ab": model.mean_chroma.expand_as(chroma),
        }.items():
            scores[f"{name}_lpips"] += len(images) * [lpips(model.join(lightness, constant), images)]
    return {name: torch.stack(values).mean().item() for name, values in scores.items()}


def summarize(several: list[Tested]) -> dict[str, Figure]:
    """Return a model's figures over its seeds: its test metrics, and where its curves end."""
    values = []
    for one in several:
        curves = one.run.history
        final = {f"final {name}": curve[-1][1] for name, curve in curves.items()}
        fall = curves["train/loss"][-1][1] / curves["train/loss"][0][1]
        values.append({**one.metrics, **final, "final / first train/loss": fall})
    figures = {}
    for name in values[0]:
        if all(name in of for of in values):
            numbers = [of[name] for of in values]
            # statistics.stdev fails if a number is infinite
            deviation = torch.tensor(numbers, dtype=torch.float64).std().item() if len(numbers) > 1 else 0.0
            figures[name] = Figure(statistics.mean(numbers), deviation, len(numbers))
    return figures


def difference(first: Colorizer, second: Colorizer, data: FolderDataModule) -> float:
    """Return how different two models' colors look: CIEDE2000, averaged over all held-out images."""
    differences = []
    for batch in data.test_dataloader():
        images = data.on_after_batch_transfer(batch.to(first.device), 0)
        labs = [rgb_to_lab(model.colorize(images)) for model in (first, second)]
        differences.append(ciede2000(*labs).mean(dim=(1, 2)))
    return torch.cat(differences).mean().item()


def held_out(data: FolderDataModule, number: int) -> Tensor:
    """Return up to ``number`` held-out images (B, 3, H, W) in [0, 1], evenly spaced through the set."""
    images = spread_out(data.test_dataloader().dataset, number)
    return data.on_after_batch_transfer(images.to(best_device()), 0)
