import numpy as np
import pytest
import torch
from torch.distributions import Normal
from torch.distributions import kl_divergence as reference_kl

from vae.elbo import kl_divergence, squared_error


def test_kl_agrees_with_torch_distributions() -> None:
    mean, log_variance = torch.randn(5, 7), torch.randn(5, 7)
    expected = reference_kl(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum(dim=1)
    torch.testing.assert_close(kl_divergence(mean, log_variance), expected)


def test_kl_is_zero_at_the_prior_and_positive_right_beside_it() -> None:
    assert kl_divergence(torch.zeros(1, 3), torch.zeros(1, 3)).item() == 0
    # to second order mean²/2 + log_variance²/4, which float32 would lose if exp(x) - 1 were taken in two steps
    beside = kl_divergence(torch.zeros(1, 1), torch.full((1, 1), 1e-4)).item()
    assert beside == pytest.approx(1e-8 / 4, rel=0.1)


def test_squared_error_is_the_sum_over_each_image() -> None:
    reconstruction, images = np.random.default_rng(0).random((2, 4, 3, 5, 6))
    expected = [((reconstruction[i] - images[i]) ** 2).sum() for i in range(4)]
    got = squared_error(torch.tensor(reconstruction), torch.tensor(images))
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_terms_are_computed_in_float32_whatever_they_are_given(dtype: torch.dtype) -> None:
    # 30,000 errors of 2 sum to 120,000, which float16 cannot hold and bfloat16 cannot count to
    with torch.autocast("cpu", dtype):
        error = squared_error(torch.full((1, 3, 100, 100), 2, dtype=dtype), torch.zeros(1, 3, 100, 100, dtype=dtype))
        kl = kl_divergence(torch.full((1, 2048), 16, dtype=dtype), torch.zeros(1, 2048, dtype=dtype))
    assert (error.item(), kl.item()) == (120_000, 2048 * 128)
    assert error.dtype == kl.dtype == torch.float32


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one shape, got \(2, 3\) and \(2, 1\)"):
        kl_divergence(torch.zeros(2, 3), torch.zeros(2, 1))
    with pytest.raises(ValueError, match="one shape"):
        squared_error(torch.zeros(2, 3, 4, 4), torch.zeros(1, 3, 4, 4))
