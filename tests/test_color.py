import kornia
import numpy as np
import pytest
import torch
from skimage.color import rgb2lab
from torch import Tensor

from colorization.color import lab_to_rgb, name_of, rgb_to_lab
from colorization.hints import Hint


@pytest.fixture
def cube() -> Tensor:
    """Every 5th level of red, green and blue, both ends included: (1, 3, 52, 2704)."""
    levels = torch.arange(0, 256, 5) / 255
    return torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 52, -1)


@pytest.fixture
def wild() -> Tensor:
    """Lab far beyond the gamut: (8, 3, 32, 32)."""
    low, high = torch.tensor([[0.0, -300, -300], [100, 300, 300]]).view(2, 3, 1, 1)
    return low + torch.rand(8, 3, 32, 32) * (high - low)


def test_lab_agrees_with_skimage(cube: Tensor) -> None:
    expected = rgb2lab(cube[0].permute(1, 2, 0).double().numpy())
    assert np.abs(rgb_to_lab(cube)[0].permute(1, 2, 0).numpy() - expected).max() < 1e-3


def test_there_and_back_is_the_same_level(cube: Tensor) -> None:
    assert (lab_to_rgb(rgb_to_lab(cube)) - cube).abs().max() < 0.5 / 255


def test_float32_under_autocast(cube: Tensor) -> None:
    lab = rgb_to_lab(cube)
    rgb = lab_to_rgb(lab)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rgb_to_lab(cube), lab)
        assert torch.equal(lab_to_rgb(lab), rgb)
        assert rgb_to_lab(cube.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("color", [(0, 0, 0), (1, 1, 1), (0.5, 0.5, 0.5), (0, 0, 1), (1e-9, 0, 0), (0.04045,) * 3])
def test_gradients_are_finite_everywhere_in_rgb(color: tuple[float, float, float]) -> None:
    image = torch.tensor(color, dtype=torch.float32).view(1, 3, 1, 1).requires_grad_()
    lab = rgb_to_lab(image)
    lab.square().sum().backward()
    assert lab.isfinite().all()
    assert image.grad.isfinite().all()


@pytest.mark.parametrize("color", [(0, 0, 0), (100, 0, 0), (0, 128, -128), (50, -128, -128), (100, 128, 128)])
def test_gradients_are_finite_everywhere_in_lab(color: tuple[float, float, float]) -> None:
    lab = torch.tensor(color, dtype=torch.float32).view(1, 3, 1, 1).requires_grad_()
    image = lab_to_rgb(lab)
    image.square().sum().backward()
    assert image.isfinite().all()
    assert lab.grad.isfinite().all()


def test_gray_has_no_chroma() -> None:
    gray = torch.linspace(0, 1, 256).expand(1, 3, 1, 256)
    assert rgb_to_lab(gray)[:, 1:].abs().max() < 0.02
    assert torch.allclose(rgb_to_lab(gray)[0, 0, 0, 128], torch.tensor(53.585), atol=1e-3)  # not 50


def test_colors_out_of_the_gamut_keep_lightness_and_hue(wild: Tensor) -> None:
    image = lab_to_rgb(wild)
    assert image.min() >= 0
    assert image.max() <= 1
    lab = rgb_to_lab(image)
    assert (lab[:, 0] - wild[:, 0]).abs().max() < 0.5  # 65 if red, green and blue were clipped
    (a, b), (true_a, true_b) = lab[:, 1:].unbind(1), wild[:, 1:].unbind(1)
    chroma, true_chroma = torch.hypot(a, b), torch.hypot(true_a, true_b)
    aside = (a * true_b - b * true_a) / true_chroma  # how far the color lies from its hue's line
    assert aside.abs().max() < 1
    assert (chroma < true_chroma + 0.5).all()


def test_as_much_chroma_is_kept_as_the_gamut_has(wild: Tensor) -> None:
    def is_outside(lab: Tensor) -> Tensor:
        rgb = kornia.color.lab_to_rgb(lab, clip=False)
        return ((rgb < -2 / 255) | (rgb > 1 + 2 / 255)).any(dim=1)

    lab = rgb_to_lab(lab_to_rgb(wild))
    lab[:, 1:] *= 1.25
    assert is_outside(lab)[is_outside(wild)].float().mean() > 0.9  # 0.95; with all chroma taken away 0


def test_lightness_beyond_black_and_white_is_clipped() -> None:
    lab = torch.tensor([[-20.0, 60, 60], [130, -60, 20]]).view(2, 3, 1, 1)
    assert torch.allclose(lab_to_rgb(lab).flatten(1), torch.tensor([[0.0] * 3, [1.0] * 3]), atol=2 / 255)


@pytest.mark.parametrize(
    ("color", "name"),
    [
        ("hotpink", "strong pink"),
        ("purple", "strong purple"),
        ("pink", "pink"),
        ("red", "strong red"),
        ("tan", "orange"),
        ("saddlebrown", "brown"),
        ("#c8c4a8", "grayish yellow"),
        ("darkseagreen", "green"),
        ("steelblue", "blue"),
        ("#808082", "gray"),
    ],
)
def test_a_color_has_a_name(color: str, name: str) -> None:
    assert name_of(Hint.parse(f"0,0,{color}").color) == name
