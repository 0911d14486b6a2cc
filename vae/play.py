"""What there is to play with in a trained VAE: fruits that can be found again, and the ways between them."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Self, cast

import torch
from torch import Tensor

from images.files import open_file
from images.reading import as_images, read_square
from modes import evaluating
from system.errors import PigmentError, reason
from vae.codes import Sampler, slerp
from vae.vae import VAE

NUM_CORNERS = 4  # at most, of the square to walk in
REACH = 3  # standard deviations to follow a direction, either way
NUMBER = r"-?\d*\.?\d+"
TEXT = re.compile(rf"(?:(?:(prior|gaussian|mixture):)?(\d{{1,18}})|(.*?))(?:@({NUMBER}(?:,{NUMBER})*))?", re.DOTALL)


class Fruit(NamedTuple):
    """How to find a place in the latent space again; as text ``17``, ``prior:17`` or ``pear.jpg@0.5,0,-2``.

    Attributes:
        source: a seed and what it draws from, or an image file.
        moves: how far from there, along the principal directions, in standard deviations.
    """

    source: tuple[Sampler, int] | Path
    moves: tuple[float, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a fruit's text; anything but a seed is a file."""
        sampler, seed, path, moves = cast(re.Match[str], TEXT.fullmatch(text)).groups()
        source = (cast(Sampler, sampler or "mixture"), int(seed)) if seed else Path(path)
        return cls(source, tuple(map(float, moves.split(","))) if moves else ())

    def __str__(self) -> str:
        if isinstance(self.source, Path):
            source = str(self.source)
        else:
            sampler, seed = self.source
            source = str(seed) if sampler == "mixture" else f"{sampler}:{seed}"
        moves = re.sub("(,0)+$", "", ",".join(f"{move:g}" for move in self.moves))
        return f"{source}@{moves}" if any(self.moves) else source

    @property
    def name(self) -> str:
        """What to call it: its seed, the kind of fruit that a training image shows, or a file's name."""
        if isinstance(self.source, Path):
            name = self.source.parent.name or self.source.name
        else:
            sampler, seed = self.source
            name = f"seed {seed}" if sampler == "mixture" else f"{sampler} seed {seed}"
        return f"{name} (moved)" if any(self.moves) else name

    def code(self, vae: VAE) -> Tensor:
        """Return its code (D,), on the CPU.

        Raises:
            PigmentError: if its file cannot be read, or the VAE lacks the sampler or the directions.
        """
        if isinstance(self.source, Path):
            with evaluating(vae):
                code = vae.encode(read_image(self.source, vae))[0][0].cpu()
        else:
            sampler, seed = self.source
            code = vae.draw(1, seed, sampler)[0]
        return move(code, self.moves, vae) if self.moves else code


def read_image(path: Path, vae: VAE) -> Tensor:
    """Read an image the way training does: (1, 3, S, S) in [0, 1], on the VAE's device.

    Raises:
        PigmentError: if it cannot be read.
    """
    try:
        with open_file(path) as file:
            pixels, _ = read_square(file.read(), vae.image_size)
    except Exception as error:  # damaged files raise all sorts of errors
        raise PigmentError(f"'{path}' cannot be used: {reason(error)}") from None
    return as_images(pixels[None].copy()).to(vae.device) / 255


def move(code: Tensor, moves: Sequence[float], vae: VAE) -> Tensor:
    """Move a code (D,) along the first principal directions, by so many standard deviations along each.

    Raises:
        PigmentError: if the VAE knows no directions, or fewer.
    """
    directions = vae.fitted_codes().directions
    if len(moves) > len(directions):
        raise PigmentError(f"this VAE has {len(directions)} principal directions, not {len(moves)}")
    return code + torch.tensor(moves, dtype=torch.float32) @ directions[: len(moves)]


def decode(codes: Tensor, vae: VAE) -> Tensor:
    """Map codes (B, D) to images (B, 3, S, S) in [0, 1], on the CPU."""
    with evaluating(vae):
        return vae.decode(codes.to(vae.device)).cpu()


def between(vae: VAE, corners: Sequence[Tensor], across: Tensor, down: Tensor) -> Tensor:
    """Decode what lies between codes (D,), on arcs that lead from left to right, and, if there are three or four, down.

    The first two are the upper corners, the others the lower; a third alone is both of these.

    Args:
        across: (A,), shares of the way from the left, in [0, 1].
        down: (B,), shares of the way from above.

    Returns:
        (B * A, 3, S, S) in [0, 1], row by row, on the CPU.
    """
    first, second, third, fourth = (*corners, *[corners[-1]] * NUM_CORNERS)[:NUM_CORNERS]
    upper, lower = slerp(first, second, across), slerp(third, fourth, across)
    codes = torch.stack([slerp(*ends, down) for ends in zip(upper, lower, strict=True)], dim=1)
    return decode(codes.flatten(0, 1), vae)


def places(num_corners: int, steps: int) -> tuple[Tensor, Tensor]:
    """Return shares of the way, evenly spaced, across and down: a single one where there is nowhere to go."""
    shares = torch.linspace(0, 1, steps)
    return shares[: steps if num_corners > 1 else 1], shares[: steps if num_corners > 2 else 1]


def share_at(place: float, steps: int) -> float:
    """Return how far along the way a place lies, from 0 to 1 across a picture of so many steps.

    The middle of each image is where it was drawn, see :func:`places`.
    """
    return round(min(1.0, max(0.0, (steps * place - 0.5) / (steps - 1))), 3)


def nearest(images: Tensor, batches: Iterable[Tensor]) -> Tensor:
    """Return which of the images in batches (B, 3, S, S) differs least from each of ``images`` (N, 3, S, S): (N,)."""
    distances = [torch.cdist(images.flatten(1), batch.flatten(1)) for batch in batches]
    return torch.cat(distances, dim=1).argmin(dim=1)
