"""The three networks, layer by layer: from lightness (B, 1, H, W) in [0, 1] to a and b (B, 2, H, W) in [-1, 1].

Heights and widths are multiples of a network's ``stride``, the factor by which it shrinks its features.
"""

from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn
from torchvision.models import ResNet, ResNet18_Weights, resnet18

from system.errors import PigmentError, reason


class Layers(nn.Sequential):
    """Layers one after the other.

    They have a ``forward`` of their own because torch 2.11 silently does not compile that of ``nn.Sequential``.
    """

    stride = 8

    def forward(self, lightness: Tensor) -> Tensor:
        return super().forward(lightness)


class ShallowNet(Layers):
    """The report's net A: 32,202 parameters."""

    def __init__(self) -> None:
        super().__init__(
            conv(1, 8, stride=2),  # (B, 8, H/2, W/2)
            conv(8, 8),
            conv(8, 16),
            conv(16, 16, stride=2),  # (B, 16, H/4, W/4)
            conv(16, 32),
            conv(32, 32, stride=2),  # (B, 32, H/8, W/8)
            nn.Upsample(scale_factor=2),
            conv(32, 32),  # (B, 32, H/4, W/4)
            nn.Upsample(scale_factor=2),
            conv(32, 16),  # (B, 16, H/2, W/2)
            nn.Upsample(scale_factor=2),
            nn.Conv2d(16, 2, kernel_size=3, padding=1),  # (B, 2, H, W)
            nn.Tanh(),
        )


class DeepNet(Layers):
    """The report's net B: 3,892,194 parameters."""

    def __init__(self) -> None:
        super().__init__(
            conv(1, 64),  # (B, 64, H, W)
            conv(64, 64, stride=2),  # (B, 64, H/2, W/2)
            conv(64, 128),
            conv(128, 128, stride=2),  # (B, 128, H/4, W/4)
            conv(128, 256),
            conv(256, 256, stride=2),  # (B, 256, H/8, W/8)
            conv(256, 512),
            conv(512, 256),
            conv(256, 128),
            nn.Upsample(scale_factor=2),
            conv(128, 64),  # (B, 64, H/4, W/4)
            nn.Upsample(scale_factor=2),
            conv(64, 32),  # (B, 32, H/2, W/2)
            nn.Conv2d(32, 2, kernel_size=3, padding=1),
            nn.Tanh(),
            nn.Upsample(scale_factor=2),  # (B, 2, H, W)
        )


class ResNetNet(nn.Module):
    """The report's net C: a ResNet18 as the encoder. The report does not give the decoder.

    This one upsamples and convolves as the other nets do, and adds the encoder's features of the same size, as LinkNet
    does (Chaurasia & Culurciello 2017, arXiv:1707.03718).
    """

    stride = 32

    def __init__(self) -> None:
        super().__init__()
        self.encoder = make_encoder(resnet18())
        self.decoder = nn.ModuleList([up(512, 256), up(256, 128), up(128, 64), up(64, 64)])
        self.head = nn.Sequential(up(64, 32), nn.Conv2d(32, 2, kernel_size=3, padding=1), nn.Tanh())  # (B, 2, H, W)

    def load_pretrained_encoder(self, weights: str) -> None:
        """Start the encoder from what it learned on ImageNet, see :func:`load_pretrained_resnet18`."""
        self.encoder.load_state_dict(make_encoder(load_pretrained_resnet18(weights)).state_dict())

    def forward(self, lightness: Tensor) -> Tensor:
        features = lightness - MEAN_GRAY
        skips = []
        for stage in self.encoder:
            features = stage(features)
            skips.append(features)
        for stage, skip in zip(self.decoder, skips[-2::-1], strict=True):
            features = stage(features) + skip
        return self.head(features)


def conv(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(channels_in, channels_out, kernel_size=3, stride=stride, padding=1)
    return nn.Sequential(convolution, nn.ReLU(inplace=True))


def up(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(conv(channels_in, channels_out), nn.Upsample(scale_factor=2))


# torchvision's normalization of RGB in [0, 1]
MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
MEAN_GRAY = MEAN.mean().item()


def make_encoder(resnet: ResNet) -> nn.ModuleList:
    """Return a ResNet18's stages; the first takes lightness (B, 1, H, W) minus ``MEAN_GRAY``."""
    return nn.ModuleList(
        [
            nn.Sequential(adapt_to_lightness(resnet.conv1), resnet.bn1, resnet.relu),  # (B, 64, H/2, W/2)
            nn.Sequential(resnet.maxpool, resnet.layer1),  # (B, 64, H/4, W/4)
            resnet.layer2,  # (B, 128, H/8, W/8)
            resnet.layer3,  # (B, 256, H/16, W/16)
            resnet.layer4,  # (B, 512, H/32, W/32)
        ]
    )


def adapt_to_lightness(first: nn.Conv2d) -> nn.Conv2d:
    """Return a convolution of lightness minus ``MEAN_GRAY`` that equals ``first`` on the same gray, normalized."""
    adapted = nn.Conv2d(1, first.out_channels, first.kernel_size, first.stride, first.padding)  # type: ignore[arg-type]
    kernels = first.weight.detach() / STD
    adapted.weight = nn.Parameter(kernels.sum(dim=1, keepdim=True))
    adapted.bias = nn.Parameter(-(kernels * (MEAN - MEAN_GRAY)).sum(dim=(1, 2, 3)))
    return adapted


def load_pretrained_resnet18(weights: str) -> ResNet:
    """Load weights by their name in torchvision, from torch.hub's folder or the network.

    Raises:
        PigmentError: if torchvision has none by that name, or they cannot be downloaded or read.
    """
    if weights not in ResNet18_Weights.__members__:
        known = ", ".join(ResNet18_Weights.__members__)
        raise PigmentError(f"torchvision has no weights '{weights}' for ResNet18. It has {known}.")
    url = ResNet18_Weights[weights].url
    try:
        return resnet18(weights=weights)
    except (OSError, RuntimeError, UnpicklingError, EOFError) as error:
        path = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
        raise PigmentError(
            f"the pre-trained weights could not be downloaded or read ({reason(error)}). Put {url} at {path}, "
            "or train from scratch: --model.init_args.weights null"
        ) from error
