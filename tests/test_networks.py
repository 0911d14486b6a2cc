from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from colorization.networks import (
    MEAN,
    MEAN_GRAY,
    STD,
    DeepNet,
    ResNetNet,
    ShallowNet,
    adapt_to_lightness,
)
from system.errors import PigmentError

NETWORKS = {"shallow": ShallowNet, "deep": DeepNet, "resnet": ResNetNet}

# As the report lists them: convolutions as channels (s2: stride 2), each but the last with a ReLU.
SHALLOW = "1-8s2 8-8 8-16 16-16s2 16-32 32-32s2 up 32-32 up 32-16 up 16-2 Tanh"
DEEP = "1-64 64-64s2 64-128 128-128s2 128-256 256-256s2 256-512 512-256 256-128 up 128-64 up 64-32 32-2 Tanh up"


def describe(net: nn.Module) -> str:
    layers = []
    for module in net.modules():
        match module:
            case nn.Conv2d():
                assert (module.kernel_size, module.padding, module.padding_mode) == ((3, 3), (1, 1), "zeros")
                assert module.bias is not None
                layers.append(f"{module.in_channels}-{module.out_channels}" + "s2" * (module.stride == (2, 2)))
            case nn.ReLU():
                layers[-1] += "*"
            case nn.Upsample():
                assert (module.scale_factor, module.mode) == (2, "nearest")
                layers.append("up")
            case nn.Tanh():
                layers.append("Tanh")
    return " ".join(layers)


@pytest.mark.parametrize(
    ("net", "expected", "num_parameters"), [(ShallowNet, SHALLOW, 32_202), (DeepNet, DEEP, 3_892_194)]
)
def test_layers_are_the_reports(net: type[nn.Module], expected: str, num_parameters: int) -> None:
    *convolutions, last = [layer for layer in expected.split() if "-" in layer]
    assert last == expected.split("Tanh")[0].split()[-1]
    for layer in convolutions:
        expected = f" {expected} ".replace(f" {layer} ", f" {layer}* ", 1).strip()
    assert describe(net()) == expected
    assert sum(parameter.numel() for parameter in net().parameters()) == num_parameters


@pytest.mark.parametrize("name", NETWORKS)
def test_chroma_has_the_size_of_lightness_and_lies_in_its_range(name: str) -> None:
    chroma = NETWORKS[name]()(torch.rand(2, 1, 32, 64))
    assert chroma.shape == (2, 2, 32, 64)
    assert chroma.abs().max() <= 1
    assert chroma.std() > 0


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_learns(name: str) -> None:
    net = NETWORKS[name]()
    net(torch.rand(2, 1, 64, 64)).square().sum().backward()
    assert [name for name, parameter in net.named_parameters() if not parameter.grad.any()] == []


def test_the_adapted_convolution_answers_lightness_as_the_first_answers_gray() -> None:
    first, lightness = resnet18().conv1, torch.rand(2, 1, 64, 64)
    gray = (lightness.expand(-1, 3, -1, -1) - MEAN) / STD
    expected, got = first(gray), adapt_to_lightness(first)(lightness - MEAN_GRAY)
    inner = (..., slice(2, -2), slice(2, -2))  # the margin is padded with gray instead of ImageNet's mean color
    assert torch.allclose(got[inner], expected[inner], atol=1e-5)
    assert (got - expected).abs().max() < 0.5 * expected.std()


def test_an_encoder_has_the_weights_that_lie_where_the_error_says(no_network: Path) -> None:
    path = no_network / "resnet18-f37072fd.pth"
    with pytest.raises(PigmentError, match="could not be downloaded or read") as refusal:
        ResNetNet().load_pretrained_encoder("IMAGENET1K_V1")
    said = str(refusal.value)
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in said
    assert str(path) in said
    assert "--model.init_args.weights null" in said

    resnet, net = resnet18(), ResNetNet()
    torch.save(resnet.state_dict(), path)
    net.load_pretrained_encoder("IMAGENET1K_V1")
    expected = nn.Sequential(resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4).state_dict().values()
    got = nn.Sequential(net.encoder[1][1], *net.encoder[2:]).state_dict().values()
    assert all(torch.equal(*pair) for pair in zip(got, expected, strict=True))
    assert torch.equal(net.encoder[0][0].weight, adapt_to_lightness(resnet.conv1).weight)


@pytest.mark.parametrize("content", [b"<html>log in to the network", b"", b"PK\x03\x04 half a file"])
def test_a_file_that_holds_no_weights_is_named(content: bytes, no_network: Path) -> None:
    no_network.mkdir(parents=True)
    (no_network / "resnet18-f37072fd.pth").write_bytes(content)
    with pytest.raises(PigmentError, match=r"could not be downloaded or read .*resnet18-f37072fd\.pth at "):
        ResNetNet().load_pretrained_encoder("IMAGENET1K_V1")


def test_weights_that_do_not_exist_are_answered_with_those_that_do() -> None:
    with pytest.raises(PigmentError, match=r"no weights 'IMAGENET' for ResNet18\. It has IMAGENET1K_V1"):
        ResNetNet().load_pretrained_encoder("IMAGENET")
