"""The map of fruits: what is on it, how it is drawn, and which fruit lies where."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from datamodules.folder import FolderDataModule, evenly_spaced
from images.drawing import MAP_SIZE, scattered
from modes import evaluating
from resuming.checkpoints import data_of, read_checkpoint
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
        source = self.fruit.source
        if isinstance(source, Path):
            return source.parent.name or source.name
        return f"seed {source[1]}"

    def moved(self, moves: Sequence[float], vae: VAE) -> "Found":
        return Found(self.fruit._replace(moves=tuple(moves)), move(self.code, moves, vae)) if any(moves) else self


class Chart(NamedTuple):
    """Fruits, and where they lie along the two longest directions, (N, 2), in standard deviations."""

    fruits: list[Found]
    places: Tensor
    middle: Tensor  # (2,), of the picture
    reach: Tensor  # (2,), from there to what lies outermost

    def at(self, across: float, down: float) -> tuple[Found, list[float]]:
        """Return the fruit nearest to a place in the picture, and how far it is from there."""
        share = (2 * torch.tensor([across, down]) - 1) * MAP_SIZE / (MAP_SIZE - THUMBNAIL)
        ways = self.middle + share * self.reach - self.places
        nearest = int((ways / self.reach).norm(dim=1).argmin())
        return self.fruits[nearest], [round(way, 1) + 0.0 for way in ways[nearest].tolist()]  # no -0


def draw_chart(path: str, vae: VAE) -> tuple[Chart, Image.Image, str]:
    """Map training images, or new fruits if there are none here; also return its picture, and a note on it."""
    try:
        data = training_data(path, vae)
    except PigmentError as error:
        fruits = [Fruit(("mixture", seed)) for seed in range(NUM_CHARTED)]
        codes = torch.stack([fruit.code(vae) for fruit in fruits])
        images = decode(codes, vae)
        note = f"New fruits, because the training images are not here: {escape(str(error))}."
    else:
        training = data.images("train")
        indices, paths = evenly_spaced(training, NUM_CHARTED), data.store.paths()
        fruits = [Fruit(data.folder / paths[row]) for row in training.rows[indices]]
        images = training.__getitems__(indices.tolist()) / 255
        with evaluating(vae):
            codes = torch.cat([vae.encode(some.to(vae.device))[0].cpu() for some in images.split(BATCH)])
        note = "Training images, where their codes lie."
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
    return (
        chart,
        scattered(images[free], shares[free], THUMBNAIL),
        f"{note} Direction 1 runs from left to right, direction 2 down.",
    )


def training_data(path: str, vae: VAE) -> FolderDataModule:
    """Find what a checkpoint was trained on.

    Raises:
        PigmentError: if that is not on this machine.
    """
    checkpoint = read_checkpoint(path, verify=False)
    if "datamodule_hyper_parameters" not in checkpoint:
        raise PigmentError("this model does not say what it was trained on")
    data = data_of(checkpoint, size=vae.image_size)
    if data.root and data.root.startswith("kaggle:"):
        raise PigmentError(f"{data.root} would have to be fetched")
    if not len(data.images("train")):  # which opens the store, so that what is missing is noticed here
        raise PigmentError("there are none")
    return data
