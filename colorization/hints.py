"""Colors that a person gives at points of a picture, and how they spread."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import ImageColor
from torch import Tensor

from modes import exact_float32

PATCH = 3  # pixels across, whose mean a true hint is
NEAR, FAR = 0.06, 0.4  # of the shorter side: how far a hint reaches among others, and on its own
FAR_WEIGHT = 0.02
ALIKE, SAME = 0.1, 0.5  # in lightness, and in features, which have a standard deviation of 1
RESISTANCE = 0.002  # weight of the prediction, where no hint is near


class Hint(NamedTuple):
    """A color at a point of a picture. The lightness stays the picture's: only the color's hue and chroma count.

    Args:
        x: from the left edge, 0, to the right, 1.
        y: from the top, 0, to the bottom, 1.
        color: sRGB in [0, 1].
    """

    x: float
    y: float
    color: tuple[float, float, float]

    @classmethod
    def parse(cls, text: str) -> "Hint":
        """Read ``x,y,color``, such as ``0.3,0.5,#c03020`` or ``0.3,0.5,red``.

        Raises:
            ValueError: if it is anything else, or the point lies outside the picture.
        """
        try:
            x, y, color = text.split(",", 2)
            red, green, blue = ImageColor.getrgb(color.strip())[:3]
            hint = cls(float(x), float(y), (red / 255, green / 255, blue / 255))
        except ValueError:
            raise ValueError(f"must be x,y,color such as 0.3,0.5,#c03020 or 0.3,0.5,red, not {text}") from None
        if not (0 <= hint.x <= 1 and 0 <= hint.y <= 1):
            raise ValueError(f"the point {x},{y} lies outside the picture, whose corners are 0,0 and 1,1")
        return hint

    def __str__(self) -> str:
        """Return what :meth:`parse` reads."""
        return f"{self.x:g},{self.y:g},{to_hex(self.color)}"


def to_hex(color: tuple[float, float, float]) -> str:
    """Write sRGB in [0, 1] as ``#rrggbb``."""
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in color)


def propagate(hints: Tensor, points: Tensor, chroma: Tensor, lightness: Tensor, features: Tensor) -> Tensor:
    """Correct a prediction so that each hint has its color, and so have pixels that are near it and look like it.

    Each pixel is corrected by the average of the errors at the hints, weighted by how near they are, and how much alike
    in lightness and to the network. Far from all hints, the prediction stays.

    Args:
        hints: (B, N, 2), the chroma that each image should have at the points.
        points: (N, 2), x and y from 0 to 1.
        chroma: (B, 2, H, W), predicted.
        lightness: (B, 1, H, W), in [0, 1].
        features: (B, C, H, W), from which the network concludes colors.
    """
    height, width = chroma.shape[2:]
    y, x = torch.meshgrid(*(torch.arange(side, device=chroma.device) + 0.5 for side in (height, width)), indexing="ij")
    pixels = torch.stack([x, y], dim=-1).view(-1, 2)
    with exact_float32(chroma.device.type):
        places = torch.stack([points[:, 0] * width, points[:, 1] * height], dim=1)
        apart = torch.cdist(places, pixels) / min(height, width)  # (N, H * W)
        near = torch.exp(-((apart / NEAR) ** 2) / 2) + FAR_WEIGHT * torch.exp(-((apart / FAR) ** 2) / 2)
        deviation, mean = torch.std_mean(features.float(), dim=(2, 3), keepdim=True, correction=0)
        features = (features - mean) / deviation.clamp(min=1e-6) / (SAME * features.shape[1] ** 0.5)
        looks = torch.cat([lightness / ALIKE, features], dim=1)
        unlike = torch.cdist(sample(looks, points), looks.flatten(2).mT)  # (B, N, H * W)
        weights = near * torch.exp(-(unlike**2) / 2)
        errors = (hints - sample(chroma, points)).mT  # (B, 2, N)
        correction = errors @ weights / (weights.sum(dim=1, keepdim=True) + RESISTANCE)
        return chroma + correction.view_as(chroma)


def sample(maps: Tensor, points: Tensor) -> Tensor:
    """Return the values of maps (B, C, H, W) at points (N, 2), x and y from 0 to 1: (B, N, C)."""
    height, width = maps.shape[2:]
    columns, rows = (
        (points[:, 0] * width).long().clamp(max=width - 1),
        (points[:, 1] * height).long().clamp(max=height - 1),
    )
    return maps[..., rows, columns].mT


def patch_means(chroma: Tensor) -> Tensor:
    """Return the mean chroma (B, 2, H, W) of the patch around each pixel."""
    return F.avg_pool2d(chroma, PATCH, stride=1, padding=PATCH // 2, count_include_pad=False)
