"""A map of fruits to point into."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from images.drawing import MAP_SIZE, scattered
from vae.play import Fruit, move
from vae.vae import VAE

THUMBNAIL = 56  # pixels


class Found(NamedTuple):
    """A fruit and its code (D,), so that a file is read only once."""

    fruit: Fruit
    code: Tensor

    @property
    def name(self) -> str:
        """What to call it: its seed, the kind of fruit that a training image shows, or a file's name."""
        source, moves = self.fruit
        name = source.parent.name or source.name if isinstance(source, Path) else f"seed {source[1]}"
        return f"{name} (moved)" if moves else name

    def moved(self, moves: Sequence[float], vae: VAE) -> "Found":
        """Move it along the principal directions; a VAE with fewer latents has fewer of them."""
        moves = tuple(moves[: vae.latent_dim])
        return Found(self.fruit._replace(moves=moves), move(self.code, moves, vae)) if any(moves) else self


class Chart(NamedTuple):
    """Fruits, and where they lie along the first two principal directions, (N, 2), in standard deviations."""

    fruits: list[Found]
    places: Tensor
    middle: Tensor  # (2,), what lies in the middle of the picture
    reach: Tensor  # (2,), from there to what lies outermost
    picture: Image.Image

    @classmethod
    def draw(cls, fruits: Sequence[Found], images: Tensor, vae: VAE) -> Self:
        """Lay out fruits and their images (N, 3, S, S); where some would overlap, only the first is shown.

        Raises:
            PigmentError: if the VAE knows no directions.
        """
        codes = torch.stack([code for _, code in fruits])
        center, directions = vae.fitted_codes()[:2]
        places = (codes - center) @ directions[:2].T / directions[:2].square().sum(dim=1)
        places = F.pad(places, (0, 2 - places.shape[1]))  # a single latent has only one direction
        low, high = places.aminmax(dim=0)
        middle, reach = (low + high) / 2, ((high - low) / 2).clamp(min=1e-6)
        shares = (places - middle) / reach
        free: list[int] = []
        for index, share in enumerate(shares):
            if ((shares[free] - share).norm(dim=1) > 2 * THUMBNAIL / MAP_SIZE).all():
                free.append(index)
        picture = scattered(images[free], shares[free], THUMBNAIL)
        return cls([fruits[index] for index in free], places[free], middle, reach, picture)

    def at(self, across: float, down: float) -> tuple[Found, list[float]]:
        """Return the fruit nearest to a place in the picture, and the moves that lead from the fruit to that place."""
        share = (2 * torch.tensor([across, down]) - 1) * MAP_SIZE / (MAP_SIZE - THUMBNAIL)
        ways = self.middle + share * self.reach - self.places
        nearest = int((ways / self.reach).norm(dim=1).argmin())
        return self.fruits[nearest], [round(way, 1) + 0.0 for way in ways[nearest].tolist()]  # no -0
