"""sRGB to CIE Lab (D65) and back, in float32 whatever the precision, with finite gradients everywhere."""

import torch
from kornia import color
from torch import Tensor

LAB_SCALE = (100.0, 128.0, 128.0)  # dividing by it brings L into [0, 1], a and b into [-1, 1], for networks
HALF_A_LEVEL = 0.5 / 255  # so far outside [0, 1] a value still rounds to an 8-bit level
BISECTIONS = 10


def rgb_to_lab(images: Tensor) -> Tensor:
    """Convert sRGB (B, 3, H, W) in [0, 1] to Lab: L in [0, 100], a in [-87, 99], b in [-108, 95]."""
    with torch.autocast(images.device.type, enabled=False):
        return color.rgb_to_lab(images.float())


def lab_to_rgb(lab: Tensor) -> Tensor:
    """Convert Lab (B, 3, H, W) to sRGB in [0, 1].

    A color that sRGB lacks keeps its lightness and hue, and loses as much chroma as it must: clipping red,
    green and blue, each for itself, would show as blobs of another lightness and hue.
    """
    with torch.autocast(lab.device.type, enabled=False):
        lightness, chroma = lab.float().split([1, 2], dim=1)
        lightness = lightness.clamp(0, 100)
        factor = _chroma_factor(lightness.detach(), chroma.detach())
        return color.lab_to_rgb(torch.cat([lightness, factor * chroma], dim=1))


def _chroma_factor(lightness: Tensor, chroma: Tensor) -> Tensor:
    """Find the largest factors (B, 1, H, W) in [0, 1] that bring each color into the gamut."""
    factor = torch.ones_like(lightness)
    outside = ~_in_gamut(lightness, chroma)
    if outside.any():
        # pixels as the columns of one image: few are outside, and only they are searched
        lightness, chroma = lightness[outside][None, None, None], chroma.movedim(1, 0)[:, outside[:, 0]][None, :, None]
        low, high = torch.zeros_like(lightness), torch.ones_like(lightness)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            inside = _in_gamut(lightness, middle * chroma)
            low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
        factor[outside] = low.flatten()
    return factor


def _in_gamut(lightness: Tensor, chroma: Tensor) -> Tensor:
    rgb = color.lab_to_rgb(torch.cat([lightness, chroma], dim=1), clip=False)
    return ((rgb >= -HALF_A_LEVEL) & (rgb <= 1 + HALF_A_LEVEL)).all(dim=1, keepdim=True)
