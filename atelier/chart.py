"""The map of fruits: what is on it, how it is drawn, and which fruit lies where."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from datamodules.folder import FolderDataModule, evenly_spaced
from images.drawing import MAP_SIZE, scattered
from modes import evaluating
from resuming.checkpoints import read_checkpoint, training_data
from system.errors import PigmentError
from vae import VAE
from vae.play import Fruit, decode, move

NUM_CHARTED, THUMBNAIL = 300, 56  # fruits at most, and pixels
BATCH = 64  # images encoded at a time


class Found(NamedTuple):
    """A fruit and its code (D,), so that a visitor's own file is read only once."""

    fruit: Fruit
    code: Tensor

    @property
    def name(self) -> str:
        """What to call it: its seed, the kind of fruit that a training image shows, or a visitor's file."""
        source, moves = self.fruit
        name = source.parent.name or source.name if isinstance(source, Path) else f"seed {source[1]}"
        return f"{name}, moved" if moves else name

    def moved(self, moves: Sequence[float], vae: VAE) -> "Found":
        """Move it along the principal directions; a VAE with fewer latents has fewer of them."""
        moves = tuple(moves[: vae.latent_dim])
        return Found(self.fruit._replace(moves=moves), move(self.code, moves, vae)) if any(moves) else self


class Chart(NamedTuple):
    """Fruits, and where they lie along the two longest directions, (N, 2), in standard deviations."""

    fruits: list[Found]
    places: Tensor
    middle: Tensor  # (2,), of the picture
    reach: Tensor  # (2,), from there to what lies outermost

    def at(self, across: float, down: float) -> tuple[Found, list[float]]:
        """Return the fruit nearest to a place in the picture, and the moves that lead from the fruit to that place."""
        share = (2 * torch.tensor([across, down]) - 1) * MAP_SIZE / (MAP_SIZE - THUMBNAIL)
        ways = self.middle + share * self.reach - self.places
        nearest = int((ways / self.reach).norm(dim=1).argmin())
        return self.fruits[nearest], [round(way, 1) + 0.0 for way in ways[nearest].tolist()]  # no -0


@lru_cache(maxsize=4)
def draw_chart(path: str, vae: VAE) -> tuple[Chart, Image.Image, str]:
    """Map training images, or new fruits if there are none here; also return its picture, and a note on it."""
    try:
        data = charted_data(path, vae)
    except PigmentError:
        note = "New fruits, because there are no training images here to show."
        fruits = [Fruit(("mixture", seed)) for seed in range(NUM_CHARTED)]
        codes = torch.stack([fruit.code(vae) for fruit in fruits])
        images = decode(codes, vae)
    else:
        note = "Training images, where their codes lie."
        training, paths = data.images("train"), data.store.paths()
        indices = evenly_spaced(training, NUM_CHARTED)
        fruits = [Fruit(data.folder / paths[row]) for row in training.rows[indices]]
        images = training.__getitems__(indices.tolist()) / 255
        with evaluating(vae):
            codes = torch.cat([vae.encode(some.to(vae.device))[0].cpu() for some in images.split(BATCH)])
    center, directions = vae.fitted_codes()[:2]
    places = (codes - center) @ directions[:2].T / directions[:2].square().sum(dim=1)
    places = F.pad(places, (0, 2 - places.shape[1]))  # a single latent has only one direction
    low, high = places.aminmax(dim=0)
    middle, reach = (low + high) / 2, ((high - low) / 2).clamp(min=1e-6)
    shares = (places - middle) / reach
    free: list[int] = []  # of those that would cover each other, only the first is shown
    for index, share in enumerate(shares):
        if ((shares[free] - share).norm(dim=1) > 2 * THUMBNAIL / MAP_SIZE).all():
            free.append(index)
    chart = Chart([Found(fruits[index], codes[index]) for index in free], places[free], middle, reach)
    note = f"{note} Point anywhere. Direction 1 runs from left to right, direction 2 down."
    return chart, scattered(images[free], shares[free], THUMBNAIL), note


def charted_data(path: str, vae: VAE) -> FolderDataModule:
    """Find what a checkpoint was trained on.

    Raises:
        PigmentError: if that is not on this machine.
    """
    checkpoint = read_checkpoint(path, verify=False)
    root = checkpoint.get("datamodule_hyper_parameters", {}).get("root") or ""
    if root.startswith("kaggle:"):
        raise PigmentError(f"{root} would have to be fetched")
    return training_data(checkpoint, vae.image_size)
