"""sRGB to CIE Lab (D65) and back, always in float32, with finite gradients everywhere.

kornia does the conversion: within 6e-5 of scikit-image, and as fast as our own formulas were (some 1,000 images of
128 px a second on one CPU core).
"""

import torch
from kornia import color
from torch import Tensor

from modes import exact_float32

LAB_SCALE = (100.0, 128.0, 128.0)  # networks see Lab divided by this: L in [0, 1], a and b in [-1, 1]
HALF_A_LEVEL = 0.5 / 255  # a value this far outside [0, 1] still rounds to an 8-bit level
BISECTIONS = 10


def rgb_to_lab(images: Tensor) -> Tensor:
    """Convert sRGB (B, 3, H, W) in [0, 1] to Lab: L in [0, 100], a in [-87, 99], b in [-108, 95]."""
    with exact_float32(images.device.type):
        return color.rgb_to_lab(images.float())


def lab_to_rgb(lab: Tensor) -> Tensor:
    """Convert Lab (B, 3, H, W) to sRGB in [0, 1].

    A color outside sRGB keeps its lightness and hue and loses as much chroma as it must. Clipping red, green and blue
    separately would show as blobs of a different lightness and hue.
    """
    with exact_float32(lab.device.type):
        lab = torch.cat([lab[:, :1].clamp(0, LAB_SCALE[0]), lab[:, 1:]], dim=1).float()
        rgb = color.lab_to_rgb(lab, clip=False)
        outside = ~_in_gamut(rgb)
        if outside.any():  # usually few pixels; only these are converted again
            colors = _reduce_chroma(lab.movedim(1, -1)[outside].T[None, :, None])
            rgb = rgb.movedim(1, -1).index_put((outside,), color.lab_to_rgb(colors)[0, :, 0].T).movedim(-1, 1)
        return rgb.clamp(0, 1)


def _reduce_chroma(lab: Tensor) -> Tensor:
    """Scale a and b by the largest factors in [0, 1] that bring the colors (B, 3, H, W) into the gamut."""
    gray = lab * torch.tensor([1.0, 0, 0], device=lab.device).view(3, 1, 1)
    low, high = torch.zeros_like(lab[:, :1]), torch.ones_like(lab[:, :1])
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        inside = _in_gamut(color.lab_to_rgb(gray.lerp(lab.detach(), middle), clip=False))[:, None]
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    return gray.lerp(lab, low)


def _in_gamut(rgb: Tensor) -> Tensor:
    return ((rgb >= -HALF_A_LEVEL) & (rgb <= 1 + HALF_A_LEVEL)).all(dim=1)
