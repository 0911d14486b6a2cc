"""Maps of the latent space: of validation images during a run, and of fruits to point into."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from images.drawing import MAP_SIZE, scattered
from modes import evaluating
from vae.codes import fix_signs
from vae.play import REACH, Fruit, decode, move
from vae.vae import VAE

THUMBNAIL = 56  # pixels
BATCH = 64  # images encoded at a time; all at once would take more memory than training does
NUM_CHARTED = 300  # images, by default


class Found(NamedTuple):
    """A fruit and its code (D,), so that a file is read only once."""

    fruit: Fruit
    code: Tensor

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
    typical: dict[str, Found]  # see find_typical

    @classmethod
    def of_images(cls, paths: Sequence[Path], images: Tensor, vae: VAE) -> Self:
        """Lay out images (N, 3, S, S) in [0, 1] and the files that they are from, as :meth:`draw` does."""
        with evaluating(vae):
            codes = torch.cat([vae.encode(some.to(vae.device))[0].cpu() for some in images.split(BATCH)])
        return cls.draw([Found(Fruit(path), code) for path, code in zip(paths, codes, strict=True)], images, vae)

    @classmethod
    def of_new(cls, number: int, vae: VAE) -> Self:
        """Lay out new fruits, as :meth:`draw` does."""
        fruits = [Fruit(("mixture", seed)) for seed in range(number)]
        codes = torch.stack([fruit.code(vae) for fruit in fruits])
        return cls.draw(list(map(Found, fruits, codes)), decode(codes, vae), vae)

    @classmethod
    def draw(cls, fruits: Sequence[Found], images: Tensor, vae: VAE) -> Self:
        """Lay out fruits and their images (N, 3, S, S). Where some would overlap, one is shown, a typical one first.

        Raises:
            PigmentError: if the VAE knows no directions.
        """
        places = find_places(torch.stack([code for _, code in fruits]), vae)
        low, high = places.aminmax(dim=0)
        middle, reach = (low + high) / 2, ((high - low) / 2).clamp(min=1e-3)  # less is rounding
        shares = (places - middle) / reach
        typical, free = find_typical(fruits), list[int]()
        for index in [*typical.values(), *range(len(fruits))]:
            if ((shares[free] - shares[index]).norm(dim=1) > 2 * THUMBNAIL / MAP_SIZE).all():
                free.append(index)
        picture = scattered(images[free], shares[free], THUMBNAIL)
        shown, named = [fruits[index] for index in free], {kind: fruits[index] for kind, index in typical.items()}
        return cls(shown, places[free], middle, reach, picture, named)

    def at(self, across: float, down: float) -> tuple[Found, list[float]]:
        """Return the fruit nearest to a place in the picture, and the moves from it toward that place, up to REACH."""
        share = (2 * torch.tensor([across, down]) - 1) * MAP_SIZE / (MAP_SIZE - THUMBNAIL)
        ways = self.middle + share * self.reach - self.places
        nearest = int((ways / self.reach).norm(dim=1).argmin())
        moves = ways[nearest].clamp(-REACH, REACH).tolist()
        return self.fruits[nearest], [round(one, 1) + 0.0 for one in moves]  # no -0

    def spot(self, code: Tensor, vae: VAE) -> tuple[float, float]:
        """Return where in the picture a code (D,) lies, from 0 to 1 across and down, or the nearest edge."""
        (place,) = find_places(code[None], vae)
        share = (place - self.middle) / self.reach * (MAP_SIZE - THUMBNAIL) / MAP_SIZE
        across, down = ((share + 1) / 2).clamp(0, 1).tolist()
        return across, down


def latent_map(images: Tensor, codes: Tensor) -> Image.Image:
    """Center thumbnails of images (B, 3, H, W) in [0, 1] on the two principal components of their codes (B, D)."""
    codes = codes.cpu() - codes.cpu().mean(dim=0)
    places = codes @ fix_signs(torch.linalg.svd(codes, full_matrices=False).Vh[:2]).T
    places = F.pad(places, (0, 2 - places.shape[1]))  # a single image or latent has only one component
    return scattered(images, places / places.abs().max().clamp(min=1e-12))  # one scale for both axes


def find_places(codes: Tensor, vae: VAE) -> Tensor:
    """Return where codes (N, D) lie along the first two principal directions, (N, 2), in standard deviations."""
    center, directions = vae.fitted_codes()[:2]
    places = (codes - center) @ directions[:2].T / directions[:2].square().sum(dim=1)
    return F.pad(places, (0, 2 - places.shape[1]))  # a single latent has only one direction


def find_typical(fruits: Sequence[Found]) -> dict[str, int]:
    """For each kind, in alphabetical order, return the index of the fruit whose code is nearest to the kind's mean.

    A kind is a folder of training images; fruits from seeds have none.
    """
    kinds: dict[str, list[int]] = {}
    for index, ((source, _), _) in enumerate(fruits):
        if isinstance(source, Path):
            kinds.setdefault(source.parent.name, []).append(index)
    typical = {}
    for kind, members in sorted(kinds.items()):
        codes = torch.stack([fruits[index].code for index in members])
        typical[kind] = members[int((codes - codes.mean(dim=0)).norm(dim=1).argmin())]
    return typical
