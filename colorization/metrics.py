"""How different two colors look."""

import math

import torch
from torch import Tensor


def ciede2000(first: Tensor, second: Tensor) -> Tensor:
    """CIEDE2000, how different two colors look: below about 1 they can hardly be told apart.

    Sharma, Wu & Dalal 2005, "The CIEDE2000 color-difference formula", equations 2 to 22, with weights of 1. Gradients
    are finite everywhere.

    Args:
        first: (B, 3, H, W), Lab.
        second: (B, 3, H, W), Lab.

    Returns:
        (B, H, W), 0 or more.
    """
    (l1, a1, b1), (l2, a2, b2) = first.float().unbind(1), second.float().unbind(1)
    stretch = 1.5 - 0.5 * _saturation((_chroma(a1, b1) + _chroma(a2, b2)) / 2)
    a1, a2 = stretch * a1, stretch * a2
    c1, c2 = _chroma(a1, b1), _chroma(a2, b2)
    h1, h2 = _hue(a1, b1, c1), _hue(a2, b2, c2)

    around = (h1 - h2).abs() > math.pi  # the short way between the hues crosses the cut at 180 degrees
    turn = torch.where(around, 2 * math.pi, 0.0)
    hue_difference = h2 - h1 + torch.where(h2 > h1, -turn, turn)
    delta_l, delta_c, delta_h = l2 - l1, c2 - c1, 2 * _root(c1 * c2) * torch.sin(hue_difference / 2)

    mean_l, mean_c = (l1 + l2) / 2, (c1 + c2) / 2
    mean_h = torch.where(c1 * c2 == 0, h1 + h2, (h1 + h2 + turn) / 2)
    t = (
        1
        - 0.17 * torch.cos(mean_h - math.radians(30))
        + 0.24 * torch.cos(2 * mean_h)
        + 0.32 * torch.cos(3 * mean_h + math.radians(6))
        - 0.20 * torch.cos(4 * mean_h - math.radians(63))
    )
    scale_l = 1 + 0.015 * (mean_l - 50) ** 2 / torch.sqrt(20 + (mean_l - 50) ** 2)
    scale_c, scale_h = 1 + 0.045 * mean_c, 1 + 0.015 * mean_c * t
    blue = torch.rad2deg(mean_h) % 360  # the rotation term corrects the region around 275 degrees
    rotation = -torch.sin(math.radians(60) * torch.exp(-(((blue - 275) / 25) ** 2))) * 2 * _saturation(mean_c)
    delta_l, delta_c, delta_h = delta_l / scale_l, delta_c / scale_c, delta_h / scale_h
    return _root(delta_l**2 + delta_c**2 + delta_h**2 + rotation * delta_c * delta_h)


def _saturation(chroma: Tensor) -> Tensor:
    seventh = chroma**7
    return _root(seventh / (seventh + 25.0**7))


def _chroma(a: Tensor, b: Tensor) -> Tensor:
    return _root(a**2 + b**2)


def _hue(a: Tensor, b: Tensor, chroma: Tensor) -> Tensor:
    """Return the angle; a gray has hue 0, which its chroma of 0 cancels."""
    return torch.atan2(b, torch.where(chroma < 1e-15, 1.0, a))


def _root(square: Tensor) -> Tensor:
    """Return the square root, with a gradient of 0 instead of infinity where it is 0."""
    is_positive = square > 0
    return torch.where(is_positive, torch.where(is_positive, square, 1.0).sqrt(), 0.0)
