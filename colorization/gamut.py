"""The colors that sRGB can show, on a grid of a and b; the tenth colorizer says how likely each is."""

import torch
from torch import Tensor

from colorization.color import rgb_to_lab

GRID = 10  # between neighboring colors
NEAREST = 5
NEARBY, REACH = 16, 12  # the nearest ones are among so many around a place on the grid, from -REACH to REACH


def displayable_colors() -> Tensor:
    """Return the points (a, b) of a grid that sRGB can show at some lightness: (259, 2)."""
    levels = torch.linspace(0, 1, 33)
    cube = torch.stack(torch.meshgrid(levels, levels, levels, indexing="ij")).flatten(1)[None, :, None]
    return GRID * (rgb_to_lab(cube)[0, 1:, 0].T / GRID).round().unique(dim=0)


def find_nearest(chroma: Tensor, colors: Tensor, nearby: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distances of a and b (B, 2, h, w) to the nearest colors, and which these are: (B, h, w, NEAREST)."""
    rows, columns = ((chroma / GRID).round().long().clamp(-REACH, REACH) + REACH).unbind(1)
    near = nearby[rows, columns]
    apart = (colors[near] - chroma.permute(0, 2, 3, 1)[..., None, :]).square().sum(dim=4)
    squares, order = apart.topk(NEAREST, largest=False)
    return squares.sqrt(), near.gather(3, order)


def neighbors(colors: Tensor) -> Tensor:
    """Return for each place on the grid the colors around it, where those nearest to a pixel are looked for."""
    line = GRID * torch.arange(-REACH, REACH + 1.0)
    places = torch.stack(torch.meshgrid(line, line, indexing="ij"), dim=2)
    return torch.cdist(places, colors.expand(len(line), -1, -1)).topk(NEARBY, largest=False).indices
