"""How close and how vivid colors are: pure functions, and a Metric around each that averages it over images."""

import math
from abc import ABC, abstractmethod

import torch
from kornia.metrics import ssim
from torch import Tensor
from torchmetrics import Metric

from colorization.color import rgb_to_lab


def ciede2000(first: Tensor, second: Tensor) -> Tensor:
    """CIEDE2000, how different two colors look: up to about 1 they can hardly be told apart.

    Sharma, Wu & Dalal 2005, "The CIEDE2000 color-difference formula", equations 2 to 22, with weights of 1.

    Args:
        first: (B, 3, H, W), Lab.
        second: (B, 3, H, W), Lab.

    Returns:
        (B, H, W), 0 or more.
    """
    (l1, a1, b1), (l2, a2, b2) = first.float().unbind(1), second.float().unbind(1)
    stretch = 1.5 - 0.5 * _saturation((torch.hypot(a1, b1) + torch.hypot(a2, b2)) / 2)
    a1, a2 = stretch * a1, stretch * a2
    c1, c2 = torch.hypot(a1, b1), torch.hypot(a2, b2)
    h1, h2 = torch.atan2(b1, a1), torch.atan2(b2, a2)  # of a gray 0, whatever the other's: its chroma cancels it

    around = (h1 - h2).abs() > math.pi  # the short way from one hue to the other leads over the cut at 180 degrees
    turn = torch.where(around, 2 * math.pi, 0.0)
    hue_difference = h2 - h1 + torch.where(h2 > h1, -turn, turn)
    delta_l, delta_c, delta_h = l2 - l1, c2 - c1, 2 * torch.sqrt(c1 * c2) * torch.sin(hue_difference / 2)

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
    return torch.sqrt((delta_l**2 + delta_c**2 + delta_h**2 + rotation * delta_c * delta_h).clamp(min=0))


def _saturation(chroma: Tensor) -> Tensor:
    return torch.sqrt(chroma**7 / (chroma**7 + 25.0**7))


def colorfulness(images: Tensor) -> Tensor:
    """Measure how colorful images look: 0 if gray, about 15 if slightly, 59 if quite, 109 if extremely colorful.

    Hasler & Süsstrunk 2003, "Measuring colourfulness in natural images", section 7.

    Args:
        images: (B, 3, H, W), RGB in [0, 1].

    Returns:
        (B,), 0 or more, for values in [0, 255] as in the paper.
    """
    red, green, blue = (255 * images.float()).flatten(2).unbind(1)
    opponent = torch.stack([red - green, (red + green) / 2 - blue])  # (2, B, H * W)
    mean = opponent.mean(dim=2, keepdim=True)
    deviation = (opponent - mean).square().mean(dim=2).sqrt()  # a third of the time of torch.std
    return torch.hypot(*deviation) + 0.3 * torch.hypot(*mean.squeeze(2))


class ImageMean(Metric, ABC):
    """The mean over images of a measure of each; predicted and true ones are RGB (B, 3, H, W) in [0, 1]."""

    full_state_update = False
    total: Tensor
    num_images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("num_images", torch.tensor(0), dist_reduce_fx="sum")

    @abstractmethod
    def measure(self, predicted: Tensor, images: Tensor) -> Tensor:
        """Return a value for each image, (B,)."""

    def update(self, predicted: Tensor, images: Tensor) -> None:
        self.total += self.measure(predicted, images).sum()
        self.num_images += len(images)

    def compute(self) -> Tensor:
        return self.total / self.num_images


class SSIM(ImageMean):
    """Structural similarity (Wang et al. 2004), up to 1, in the paper's Gaussian window of 11 pixels.

    kornia's, because that of torchmetrics, which agrees within 1e-5, takes five times as long.
    """

    def measure(self, predicted: Tensor, images: Tensor) -> Tensor:
        return ssim(predicted, images, window_size=11).mean(dim=(1, 2, 3))


class CIEDE2000(ImageMean):
    """How different the colors of prediction and truth look, averaged over an image's pixels."""

    def measure(self, predicted: Tensor, images: Tensor) -> Tensor:
        return ciede2000(rgb_to_lab(predicted), rgb_to_lab(images)).mean(dim=(1, 2))


class ColorfulnessDifference(ImageMean):
    """How much more colorful the prediction is than the truth: negative if it is paler."""

    def measure(self, predicted: Tensor, images: Tensor) -> Tensor:
        return colorfulness(predicted) - colorfulness(images)
