"""A smaller and sharper VAE than the report's: residual blocks, most of them where images are small."""

import math

import torch
from torch import Tensor, nn

from vae.vae import VAE, check_numbers

WIDTHS = (32, 64, 128, 128)  # channels at a half, a quarter, an eighth, and a sixteenth of the size
ENCODER_BLOCKS = (0, 1, 1, 1)  # at each of these sizes
DECODER_BLOCKS = (1, 1, 2, 2)


class ResidualVAE(VAE):
    """A VAE of residual blocks whose latents keep their place, with a decoder whose sigma follows its errors.

    A code is a map of a sixteenth of the image's size, so that the networks need no fully connected layers. The
    learning rate rises linearly over ``warmup_steps``, then follows a cosine to 0 at the end of the run.

    Args:
        image_size: height and width of the images, in pixels; 16 or more.
        latent_channels: number of latents at each place of the map.
        lr: learning rate of Adam, at its height.
        warmup_steps: optimizer steps until the learning rate is at its height.

    Raises:
        ValueError: if a number is too small.
    """

    def __init__(self, image_size: int, latent_channels: int, lr: float, warmup_steps: int) -> None:
        # below 16 px, the last halving would find one pixel, where oneDNN's bfloat16 gradient reads foreign memory
        if image_size < 16:
            raise ValueError(
                f"ResidualVAE halves images four times, so their size must be 16 or more, got {image_size}. "
                "Set data.init_args.size."
            )
        check_numbers(lr, "latent_channels", latent_channels)
        if warmup_steps < 0:
            raise ValueError(f"model.init_args.warmup_steps is {warmup_steps}, must be 0 or more.")
        encoder, decoder = ResidualEncoder(latent_channels), ResidualDecoder(image_size, latent_channels)
        latent_dim = latent_channels * sizes(image_size)[-1] ** 2
        super().__init__(encoder, decoder, image_size, latent_dim, lr, "cosine", warmup_steps, "optimal")
        self.save_hyperparameters()


class ResidualEncoder(nn.Sequential):
    """Map images (B, 3, S, S) to the posterior's mean and log-variance, (B, latent_dim) each."""

    def __init__(self, latent_channels: int) -> None:
        layers: list[nn.Module] = []
        for channels_in, width, num_blocks in zip((3, *WIDTHS), WIDTHS, ENCODER_BLOCKS, strict=False):
            layers.append(conv(channels_in, width, stride=2))  # (B, width, S / 2, S / 2) and so on, rounded up
            layers += [Block(width) for _ in range(num_blocks)]
        head = nn.Conv2d(WIDTHS[-1], 2 * latent_channels, kernel_size=1)  # (B, 2 * latent_channels, S / 16, S / 16)
        super().__init__(*layers, norm_silu(WIDTHS[-1]), head)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = super().forward(images).chunk(2, dim=1)
        return mean.flatten(1), log_variance.flatten(1)


class ResidualDecoder(nn.Sequential):
    """Map latents (B, latent_dim) to images (B, 3, S, S) in [0, 1], float32."""

    def __init__(self, image_size: int, latent_channels: int) -> None:
        *larger, smallest = sizes(image_size)
        layers: list[nn.Module] = [conv(latent_channels, WIDTHS[-1])]  # (B, width, S / 16, S / 16), rounded up
        for level in reversed(range(len(WIDTHS))):
            width = WIDTHS[level]
            layers += [Block(width) for _ in range(DECODER_BLOCKS[level])]
            if level:
                layers += [nn.Upsample(larger[level]), conv(width, WIDTHS[level - 1])]
        # (B, 32, S / 2, S / 2), rounded up; the last layers compute a square of 2 x 2 pixels from each place
        width = WIDTHS[0]
        super().__init__(*layers, norm_silu(width), conv(width, width), nn.SiLU(), conv(width, 12), nn.PixelShuffle(2))
        self.map_shape, self.image_size = (latent_channels, smallest, smallest), image_size

    def forward(self, latents: Tensor) -> Tensor:
        code = latents.unflatten(1, self.map_shape).contiguous(memory_format=torch.channels_last)  # faster
        values = super().forward(code)[..., : self.image_size, : self.image_size]
        return torch.sigmoid(values.float())


class Block(nn.Module):
    """A pre-activation residual block (He et al. 2016, arXiv:1603.05027)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(norm_silu(width), conv(width, width), norm_silu(width), conv(width, width))

    def forward(self, features: Tensor) -> Tensor:
        return features + self.layers(features)


def conv(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel_size=3, stride=stride, padding=1)


def norm_silu(width: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(width), nn.SiLU())


def sizes(image_size: int) -> list[int]:
    """Return an image's size, and half, a quarter, an eighth, and a sixteenth of it, all rounded up."""
    return [math.ceil(image_size / 2**level) for level in range(len(WIDTHS) + 1)]
