import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal
from torch.distributions import kl_divergence as reference_kl

from vae.elbo import MIN_VARIANCE, bits_per_dim, gaussian_nll, kl_divergence, squared_error


def test_kl_agrees_with_torch_distributions() -> None:
    mean, log_variance = torch.randn(5, 7), torch.randn(5, 7)
    expected = reference_kl(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum(dim=1)
    torch.testing.assert_close(kl_divergence(mean, log_variance), expected)


def test_kl_is_zero_at_the_prior_and_positive_right_beside_it() -> None:
    assert kl_divergence(torch.zeros(1, 3), torch.zeros(1, 3)).item() == 0
    # to second order mean²/2 + log_variance²/4, which float32 would lose by computing exp(x) - 1 in two steps
    beside = kl_divergence(torch.zeros(1, 1), torch.full((1, 1), 1e-4)).item()
    assert beside == pytest.approx(1e-8 / 4, rel=0.1)


def test_squared_error_is_the_sum_over_each_image() -> None:
    reconstruction, images = np.random.default_rng(0).random((2, 4, 3, 5, 6))
    expected = [((reconstruction[i] - images[i]) ** 2).sum() for i in range(4)]
    got = squared_error(torch.tensor(reconstruction), torch.tensor(images))
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float32))


def test_nll_is_that_of_a_gaussian_in_gray_levels() -> None:
    images, reconstruction, variance = torch.rand(4, 3, 5, 5), torch.rand(4, 3, 5, 5), torch.tensor(0.03)
    found = gaussian_nll(squared_error(reconstruction, images), variance, num_values=75)
    gaussian = Normal(255 * reconstruction, 255 * variance.sqrt())
    torch.testing.assert_close(found, -gaussian.log_prob(255 * images).sum(dim=(1, 2, 3)))


def test_nll_is_least_at_the_mean_squared_error_and_never_negative() -> None:
    error, variances = torch.tensor(12.0), torch.logspace(-6, 0, 601)
    likeliest = variances[gaussian_nll(error, variances, num_values=300).argmin()]
    assert likeliest.item() == pytest.approx(12 / 300, rel=0.02)
    assert gaussian_nll(torch.tensor(0.0), torch.tensor(MIN_VARIANCE), 300).item() == pytest.approx(0, abs=1e-4)


def test_gray_levels_that_are_equally_likely_take_8_bits() -> None:
    assert bits_per_dim(torch.tensor(192 * math.log(256)), 192).item() == pytest.approx(8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_terms_are_computed_in_float32_whatever_they_are_given(dtype: torch.dtype) -> None:
    # 30,000 errors of 2 sum to 120,000, which float16 cannot hold and bfloat16 cannot count to
    with torch.autocast("cpu", dtype):
        error = squared_error(torch.full((1, 3, 100, 100), 2, dtype=dtype), torch.zeros(1, 3, 100, 100, dtype=dtype))
        kl = kl_divergence(torch.full((1, 2048), 16, dtype=dtype), torch.zeros(1, 2048, dtype=dtype))
    assert (error.item(), kl.item()) == (120_000, 2048 * 128)
    assert error.dtype == kl.dtype == torch.float32


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the same shape, got \(2, 3\) and \(2, 1\)"):
        kl_divergence(torch.zeros(2, 3), torch.zeros(2, 1))
    with pytest.raises(ValueError, match="the same shape"):
        squared_error(torch.zeros(2, 3, 4, 4), torch.zeros(1, 3, 4, 4))
