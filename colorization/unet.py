"""The tenth network: an encoder that knows what it looks at, and a light decoder."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADS = 2  # of attention


class Prediction(NamedTuple):
    """What the network says about images (B, 1, H, W), at a quarter of their size."""

    chroma: Tensor  # (B, 2, H / 4, W / 4), the one color that is closest on average
    scores: Tensor  # (B, colors, H / 4, W / 4), the logarithms of the colors' probabilities, up to a constant
    features: Tensor  # (B, 64, H / 4, W / 4), from which it concludes both


class UNet(nn.Module):
    """Predict colors from lightness (B, 1, H, W) in [0, 1], for H and W that are multiples of ``stride``.

    Args:
        encoder: maps images (B, 3, H, W) in [0, 1] to features at strides 2, 4, 8, 16, and 32.
        channels: of these features.
        num_colors: the colors that get scores.
        dropout: share of the encoder's channels that the decoder does without, different ones for each training image.
    """

    stride = 32

    def __init__(self, encoder: nn.Module, channels: Sequence[int], num_colors: int, dropout: float) -> None:
        super().__init__()
        self.encoder, self.dropout = encoder, dropout
        _, fine, middle, coarse, bottom = channels
        self.bottom = conv_bn_relu(nn.Conv2d(bottom, 96, kernel_size=1, bias=False))
        self.coarse = Stage(96, coarse, 96)
        self.middle = Stage(96, middle, 80)
        self.attention = nn.Sequential(Attention(80), Attention(80))
        self.fine = Stage(80, fine, 64)
        self.chroma = nn.Conv2d(64, 2, kernel_size=1)
        self.scores = nn.Conv2d(64, num_colors, kernel_size=1)

    def forward(self, lightness: Tensor) -> Prediction:
        images = lightness.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        seen = self.encoder(images)[1:]
        fine, middle, coarse, bottom = [F.dropout2d(maps, self.dropout, self.training) for maps in seen]
        features = self.bottom(bottom)  # (B, 96, H / 32, W / 32)
        features = self.coarse(features, coarse)  # (B, 96, H / 16, W / 16)
        features = self.attention(self.middle(features, middle))  # (B, 80, H / 8, W / 8)
        features = self.fine(features, fine)  # (B, 64, H / 4, W / 4)
        return Prediction(self.chroma(features).float(), self.scores(features).float(), features)


class Stage(nn.Module):
    """Double the size of what was decoded so far, and refine it with the encoder's features of that size."""

    def __init__(self, channels_in: int, channels_skip: int, channels_out: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            conv_bn_relu(nn.Conv2d(channels_in + channels_skip, channels_out, kernel_size=3, padding=1, bias=False)),
            conv_bn_relu(nn.Conv2d(channels_out, channels_out, kernel_size=3, padding=1, bias=False)),
        )

    def forward(self, decoded: Tensor, skip: Tensor) -> Tensor:
        larger = F.interpolate(decoded, size=skip.shape[2:], mode="bilinear")
        return self.layers(torch.cat([larger, skip], dim=1))


class Attention(nn.Module):
    """Let every place see all others (Vaswani et al. 2017, arXiv:1706.03762), so that the colors suit each other."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.project_in = nn.Linear(channels, 3 * channels)
        self.project_out = nn.Linear(channels, channels)

    def forward(self, features: Tensor) -> Tensor:
        places = features.permute(0, 2, 3, 1).flatten(1, 2)  # (B, H * W, C)
        projected = self.project_in(self.norm(places)).unflatten(2, (3, HEADS, -1))
        query, key, value = projected.permute(2, 0, 3, 1, 4)  # (B, HEADS, H * W, C / HEADS) each
        attended = F.scaled_dot_product_attention(query, key, value)
        places = places + self.project_out(attended.transpose(1, 2).flatten(2))
        return places.unflatten(1, features.shape[2:]).permute(0, 3, 1, 2)


def conv_bn_relu(convolution: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU(inplace=True))
