"""The ConvVAE's encoder and decoder, layer by layer as the report lists them."""

from typing import Literal

import torch
from torch import Tensor, nn

HIDDEN = 2048
Activation = Literal["none", "sigmoid"]


class ConvEncoder(nn.Module):
    """Map images (B, 3, S, S) to the posterior's mean and log-variance, (B, latent_dim) each."""

    def __init__(self, image_size: int, latent_dim: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv(3, 16),  # conv1: (B, 16, S, S)
            conv(16, 32, stride=2),  # conv2: (B, 32, S/2, S/2)
            conv(32, 64),  # conv3: (B, 64, S/2, S/2)
            conv(64, 16, stride=2),  # conv4: (B, 16, S/4, S/4)
            nn.Flatten(),
            linear(16 * (image_size // 4) ** 2, HIDDEN),  # fc1
        )
        self.mean = nn.Linear(HIDDEN, latent_dim)  # fc21
        self.log_variance = nn.Linear(HIDDEN, latent_dim)  # fc22

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(images)
        return self.mean(features), self.log_variance(features)


class ConvDecoder(nn.Sequential):
    """Map latents (B, latent_dim) to images (B, 3, S, S), float32. Without an activation, values can leave [0, 1]."""

    def __init__(self, image_size: int, latent_dim: int, activation: Activation) -> None:
        side = image_size // 4
        super().__init__(
            linear(latent_dim, HIDDEN),  # fc3
            linear(HIDDEN, 16 * side**2),  # fc4
            nn.Unflatten(1, (16, side, side)),  # (B, 16, S/4, S/4)
            deconv(16, 64, stride=2),  # conv5: (B, 64, S/2, S/2)
            deconv(64, 32),  # conv6: (B, 32, S/2, S/2)
            deconv(32, 16, stride=2),  # conv7: (B, 16, S, S)
            nn.ConvTranspose2d(16, 3, kernel_size=3, padding=1, bias=False),  # conv8: (B, 3, S, S)
        )
        self.activation = activation

    def forward(self, latents: Tensor) -> Tensor:
        values = super().forward(latents).float()
        return torch.sigmoid(values) if self.activation == "sigmoid" else values


def conv(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel_size=3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


def deconv(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(
            channels_in, channels_out, kernel_size=3, stride=stride, padding=1, output_padding=stride - 1, bias=False
        ),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


def linear(features_in: int, features_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features_in, features_out), nn.BatchNorm1d(features_out), nn.ReLU(inplace=True))
