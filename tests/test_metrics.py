import math
import statistics

import numpy as np
import pytest
import torch
from skimage.color import deltaE_ciede2000
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from colorization.metrics import ciede2000
from images.colorfulness import colorfulness
from images.similarity import psnr, ssim


def random_lab(num_images: int) -> Tensor:
    low, high = torch.tensor([[0.0, -125, -125], [100, 125, 125]]).view(2, 3, 1, 1)
    return low + torch.rand(num_images, 3, 64, 64) * (high - low)


def skimages(first: Tensor, second: Tensor) -> np.ndarray:
    return deltaE_ciede2000(*(lab.movedim(1, -1).double().numpy() for lab in (first, second)))


def test_ciede2000_has_finite_gradients_where_colors_are_gray_or_the_same() -> None:
    colors = torch.tensor([[50.0, 0, 0], [50, 30, -20], [0, 0, 0], [50, 1e-20, 0]])
    first = colors.repeat_interleave(4, dim=0).T[None, :, None].contiguous().requires_grad_()
    second = colors.repeat(4, 1).T[None, :, None]
    ciede2000(first, second).sum().backward()
    assert first.grad.isfinite().all()


def test_ciede2000_agrees_with_skimage() -> None:
    first, second = random_lab(8), random_lab(8)
    first[0, 1:] = second[1, 1:] = 0  # one of them gray
    second[2] = first[2] + torch.randn(3, 64, 64)  # nearly alike
    first[3, 1:] = second[3, 1:] = 0  # both gray
    second[4] = first[4]
    assert np.abs(ciede2000(first, second).numpy() - skimages(first, second)).max() < 1e-3
    assert ciede2000(first, second)[4].max() == 0


def test_colorfulness_is_hasler_and_suesstrunks() -> None:
    images = torch.randint(0, 256, (2, 3, 16, 16))
    for image, measured in zip(images, colorfulness(images / 255), strict=True):
        rg, yb = [], []
        for red, green, blue in image.reshape(3, -1).T.tolist():
            rg.append(red - green)
            yb.append(0.5 * (red + green) - blue)
        deviation = (statistics.pvariance(rg) + statistics.pvariance(yb)) ** 0.5
        mean = (statistics.mean(rg) ** 2 + statistics.mean(yb) ** 2) ** 0.5
        assert measured.item() == pytest.approx(deviation + 0.3 * mean, rel=1e-5)


def test_ssim_agrees_with_torchmetrics() -> None:
    images = torch.rand(4, 3, 24, 40)
    images[1] = images[1, :, :1, :1]  # flat
    for noise in (0.0, 0.01, 0.3):
        predicted = (images + noise * torch.randn_like(images)).clamp(0, 1)
        expected = structural_similarity_index_measure(predicted, images, data_range=1.0, reduction="none")
        torch.testing.assert_close(ssim(predicted, images), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("size", [1, 4, 7, 10])
def test_ssim_takes_images_smaller_than_its_window(size: int) -> None:
    images = torch.rand(2, 3, size, 16)
    assert ssim(images, images).tolist() == pytest.approx([1, 1])
    assert ssim(images, 1 - images).max() < 0.9


def test_psnr_is_that_of_each_image_and_finite_for_a_copy() -> None:
    images = torch.rand(3, 3, 16, 16)
    predicted = (images + torch.tensor([0.0, 0.01, 0.3]).view(3, 1, 1, 1) * torch.randn_like(images)).clamp(0, 1)
    copy, *others = psnr(predicted, images).tolist()
    assert copy == pytest.approx(10 * math.log10(12 * 255**2))
    assert others == pytest.approx(
        [peak_signal_noise_ratio(a, b, data_range=1.0).item() for a, b in zip(predicted[1:], images[1:], strict=True)]
    )
