"""sRGB to CIE Lab (D65) and back, always in float32, with finite gradients everywhere.

Results agree with scikit-image's within 1e-4. The constants stay on the device: copying them there in every call, as
libraries do, would make the host wait for a GPU.
"""

import math
from functools import cache
from typing import NamedTuple

import torch
from kornia.color import linear_rgb_to_rgb, rgb_to_linear_rgb
from torch import Tensor

from modes import exact_float32

LAB_SCALE = (100.0, 128.0, 128.0)  # networks see Lab divided by this: L in [0, 1], a and b in [-1, 1]
HALF_A_LEVEL = 0.5 / 255  # a value this far outside [0, 1] still rounds to an 8-bit level
BISECTIONS = 10
RGB_TO_XYZ = (  # linear sRGB to CIE 1931 XYZ
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
WHITE = (0.95047, 1.0, 1.08883)  # XYZ of D65
CUBE_TO_LAB = ((0.0, 116.0, 0.0), (500.0, -500.0, 0.0), (0.0, 200.0, -200.0))  # from the cube roots of XYZ / WHITE
DARK = 6 / 29  # cube roots below this are replaced by a line


HUES = {  # where each ends, in degrees of Lab's hue; then pink begins again
    "pink": 15,
    "red": 50,
    "orange": 80,
    "yellow": 112,
    "green": 175,
    "teal": 230,
    "blue": 310,
    "purple": 338,
}
GRAY, GRAYISH, STRONG = 4, 15, 50  # chroma


class Matrices(NamedTuple):
    """The linear parts of the conversion, (3, 3) each, and their inverses."""

    from_rgb: Tensor  # from linear RGB to XYZ / WHITE
    to_lab: Tensor  # from the cube roots of XYZ / WHITE to Lab, where L is still 16 too high
    from_lab: Tensor
    to_rgb: Tensor


@cache
@torch.inference_mode(False)  # otherwise, if evaluation calls this first, training may not use the tensors
def matrices(device: torch.device) -> Matrices:
    from_rgb = torch.tensor(RGB_TO_XYZ, dtype=torch.float64) / torch.tensor(WHITE, dtype=torch.float64)[:, None]
    to_lab = torch.tensor(CUBE_TO_LAB, dtype=torch.float64)
    exact = (from_rgb, to_lab, to_lab.inverse(), from_rgb.inverse())
    return Matrices(*(matrix.float().to(device) for matrix in exact))


def rgb_to_lab(images: Tensor) -> Tensor:
    """Convert sRGB (B, 3, H, W) in [0, 1] to Lab: L in [0, 100], a in [-87, 99], b in [-108, 95]."""
    matrix = matrices(images.device)
    with exact_float32(images.device.type):
        xyz = _mix(matrix.from_rgb, rgb_to_linear_rgb(images.float()))
        is_dark = xyz < DARK**3
        roots = torch.where(is_dark, xyz / (3 * DARK**2) + 4 / 29, xyz.clamp(min=DARK**3).pow(1 / 3))
        lab = _mix(matrix.to_lab, roots)
        lab[:, 0] -= 16
        return lab


def lab_to_rgb(lab: Tensor) -> Tensor:
    """Convert Lab (B, 3, H, W) to sRGB in [0, 1].

    A color outside sRGB keeps its lightness and hue and loses as much chroma as it must. Clipping red, green and blue
    separately would show as blobs of a different lightness and hue.
    """
    with exact_float32(lab.device.type):
        lab = torch.cat([lab[:, :1].clamp(0, LAB_SCALE[0]), lab[:, 1:]], dim=1).float()
        rgb = _to_any_rgb(lab)
        outside = ~_in_gamut(rgb)
        if outside.any():  # usually few pixels; only these are converted again
            colors = _reduce_chroma(lab.movedim(1, -1)[outside].T[None, :, None])
            rgb = rgb.movedim(1, -1).index_put((outside,), _to_any_rgb(colors)[0, :, 0].T).movedim(-1, 1)
        return rgb.clamp(0, 1)


def name_of(color: tuple[float, float, float]) -> str:
    """Say what a color, sRGB in [0, 1], is called, such as ``grayish blue``."""
    lightness, a, b = rgb_to_lab(torch.tensor(color).view(1, 3, 1, 1)).flatten().tolist()
    chroma, hue = math.hypot(a, b), math.degrees(math.atan2(b, a)) % 360
    if chroma < GRAY:
        return "gray"
    name = next((name for name, end in HUES.items() if hue < end), "pink")
    if name == "orange" and lightness < 60:
        name = "brown"
    return f"grayish {name}" if chroma < GRAYISH else f"strong {name}" if chroma > STRONG else name


def _reduce_chroma(lab: Tensor) -> Tensor:
    """Scale a and b by the largest factors in [0, 1] that bring the colors (B, 3, H, W) into the gamut."""
    gray = torch.cat([lab[:, :1], torch.zeros_like(lab[:, 1:])], dim=1)
    low, high = torch.zeros_like(lab[:, :1]), torch.ones_like(lab[:, :1])
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        inside = _in_gamut(_to_any_rgb(gray.lerp(lab.detach(), middle)))[:, None]
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    return gray.lerp(lab, low)


def _to_any_rgb(lab: Tensor) -> Tensor:
    """Convert Lab (B, 3, H, W) to sRGB, outside [0, 1] for colors that sRGB cannot show."""
    matrix = matrices(lab.device)
    roots = _mix(matrix.from_lab, torch.cat([lab[:, :1] + 16, lab[:, 1:]], dim=1))
    xyz = torch.where(roots < DARK, (roots - 4 / 29) * (3 * DARK**2), roots.pow(3))
    return linear_rgb_to_rgb(_mix(matrix.to_rgb, xyz))


def _in_gamut(rgb: Tensor) -> Tensor:
    return ((rgb >= -HALF_A_LEVEL) & (rgb <= 1 + HALF_A_LEVEL)).all(dim=1)


def _mix(matrix: Tensor, images: Tensor) -> Tensor:
    """Multiply every pixel of (B, 3, H, W) by a (3, 3) matrix."""
    return (matrix @ images.flatten(2)).unflatten(2, images.shape[2:])
