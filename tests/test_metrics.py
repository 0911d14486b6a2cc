import statistics
from collections.abc import Callable

import numpy as np
import pytest
import torch
from skimage.color import deltaE_ciede2000, rgb2lab
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from colorization.metrics import CIEDE2000, SSIM, ColorfulnessDifference, ImageMean, ciede2000, colorfulness


def random_lab(num_images: int) -> Tensor:
    low, high = torch.tensor([[0.0, -125, -125], [100, 125, 125]]).view(2, 3, 1, 1)
    return low + torch.rand(num_images, 3, 64, 64) * (high - low)


def skimages(first: Tensor, second: Tensor) -> np.ndarray:
    return deltaE_ciede2000(*(lab.movedim(1, -1).double().numpy() for lab in (first, second)))


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
        metric = SSIM()
        metric.update(predicted, images)
        expected = structural_similarity_index_measure(predicted, images, data_range=1.0)
        assert metric.compute().item() == pytest.approx(expected.item(), abs=1e-5)


def test_metrics_are_means_over_images_however_they_are_batched() -> None:
    predicted, images = torch.rand(5, 3, 16, 16), torch.rand(5, 3, 16, 16)
    images[0] = images[0].mean(dim=0)
    labs = [rgb2lab(batch.movedim(1, -1).double().numpy()) for batch in (predicted, images)]
    expected: dict[Callable[[], ImageMean], float] = {
        CIEDE2000: deltaE_ciede2000(*labs).mean(),
        SSIM: structural_similarity_index_measure(predicted, images, data_range=1.0).item(),
        ColorfulnessDifference: (colorfulness(predicted).mean() - colorfulness(images).mean()).item(),
    }
    for kind, value in expected.items():
        metric = kind()
        for part in (slice(0, 2), slice(2, 5)):
            metric.update(predicted[part], images[part])
        assert metric.compute().item() == pytest.approx(value, abs=1e-3)
    assert expected[ColorfulnessDifference] != 0
