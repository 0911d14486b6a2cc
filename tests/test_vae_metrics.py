from pickle import UnpicklingError
from urllib.error import URLError

import numpy as np
import pytest
import torch

from system.errors import PigmentError
from vae.metrics import DensityCoverage, Inception, NearerThanReal, Pixels


def density_coverage(real: torch.Tensor, samples: torch.Tensor, num_neighbors: int = 5) -> tuple[float, float]:
    metric = DensityCoverage(num_neighbors)
    for part in real.split(7):
        metric.update(part, real=True)
    for part in samples.split(9):
        metric.update(part, real=False)
    values = metric.compute()
    return values["density"].item(), values["coverage"].item()


def test_density_and_coverage_are_the_papers() -> None:
    real, samples = torch.randn(40, 3), torch.randn(30, 3) * 0.8 + 0.3
    k, in_real, in_samples = 4, real.double().numpy(), samples.double().numpy()
    radii = [sorted(np.linalg.norm(in_real - one, axis=1))[k] for one in in_real]  # over all, itself included
    hits = np.array(
        [[np.linalg.norm(x - y) < radius for y in in_samples] for x, radius in zip(in_real, radii, strict=True)]
    )
    expected = (hits.sum() / (k * 30), hits.any(axis=1).mean())
    assert density_coverage(real, samples, k) == pytest.approx(expected)


def test_samples_like_the_real_images_have_both_near_1_others_lack_one() -> None:
    density, coverage = density_coverage(torch.randn(500, 4), torch.randn(500, 4))
    assert density == pytest.approx(1, abs=0.2)
    assert coverage > 0.9
    assert density_coverage(torch.randn(500, 4), torch.zeros(500, 4))[1] < 0.1  # all alike
    assert density_coverage(torch.randn(500, 4), 9 + torch.randn(500, 4))[0] < 0.1


def test_few_real_images_have_fewer_neighbors() -> None:
    assert density_coverage(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.5], [5.0]])) == (1.0, 1.0)


def test_copies_are_nearer_to_training_than_real_images() -> None:
    training = torch.randn(300, 5)
    for samples, expected in ((training[:100] + 1e-3, 1.0), (torch.randn(400, 5), 0.5), (torch.randn(100, 5) + 9, 0.0)):
        metric = NearerThanReal(training)
        metric.update(torch.randn(400, 5), real=True)
        for part in samples.split(70):
            metric.update(part, real=False)
        assert metric.compute().item() == pytest.approx(expected, abs=0.1)


def test_pixels_are_means_over_squares_of_an_image() -> None:
    images = torch.rand(2, 3, 32, 32)
    expected = images.unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(4, 5)).flatten(1)
    torch.testing.assert_close(Pixels()(images), expected)
    assert Pixels()(torch.rand(2, 3, 100, 100)).shape == (2, 768)


@pytest.mark.parametrize("error", [URLError("no network"), UnpicklingError("half a file")])
def test_inception_features_need_a_download(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr("vae.metrics.NoTrainInceptionV3", fail)
    with pytest.raises(PigmentError, match=r"could not be downloaded or read \(.*(no network|half a file).*'pixels'"):
        Inception()


def test_inception_features_need_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchmetrics.image.fid._TORCH_FIDELITY_AVAILABLE", False)
    with pytest.raises(PigmentError, match=r"need torch-fidelity, .*pip install .*by their 'pixels'"):
        Inception()
