import numpy as np
import pytest
import torch
from torch import Tensor

from vae.codes import NUM_COMPONENTS, VARIANCE, fit_codes, slerp


def draw(codes: Tensor, sampler: str, number: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(number, codes.shape[1], generator=generator)
    return fit_codes(codes).draw(noise, sampler, generator)


def correlated(number: int) -> Tensor:
    """Codes with mean (1, 2, 3, 4) and a covariance far from the prior's."""
    return torch.randn(number, 4) @ torch.tensor([[3.0, 0, 0, 0], [2, 1, 0, 0], [0, 0, 0.1, 0], [0, 0, 0, 0.5]]) + (
        torch.arange(4) + 1
    )


@pytest.mark.parametrize("sampler", ["gaussian", "mixture"])
def test_draws_have_the_mean_and_covariance_of_the_codes(sampler: str) -> None:
    codes = correlated(20_000)
    drawn = draw(codes, sampler, 20_000)
    torch.testing.assert_close(drawn.mean(dim=0), codes.mean(dim=0), atol=0.1, rtol=0)
    torch.testing.assert_close(drawn.T.cov(), codes.T.cov(), atol=0.2, rtol=0)


def test_the_mixture_keeps_clusters_apart_which_a_gaussian_does_not() -> None:
    side = torch.randint(0, 2, (2000, 1)) * 2.0 - 1
    codes = torch.cat([10 * side, side], dim=1).repeat(1, 3) + 0.1 * torch.randn(2000, 6)
    between = {
        sampler: (draw(codes, sampler, 2000)[:, 0].abs() < 8).float().mean() for sampler in ("gaussian", "mixture")
    }
    assert between["mixture"] < 0.01 < 0.3 < between["gaussian"]


def test_directions_are_the_principal_ones_as_long_as_the_deviation() -> None:
    codes = correlated(5000)
    directions = fit_codes(codes).directions
    _, lengths, expected = torch.linalg.svd(codes - codes.mean(dim=0), full_matrices=False)
    torch.testing.assert_close(directions.norm(dim=1), lengths / 4999**0.5, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close((torch.nn.functional.normalize(directions) * expected).sum(dim=1).abs(), torch.ones(4))
    assert directions.gather(1, directions.abs().argmax(dim=1, keepdim=True)).min() > 0  # so that maps are alike


@pytest.mark.parametrize(
    "codes", [torch.zeros(30, 3), torch.rand(2, 5), torch.rand(40, 1), torch.rand(3, 2).repeat(9, 1)]
)
def test_few_latents_few_codes_and_codes_that_are_alike_can_be_drawn_from(codes: Tensor) -> None:
    for sampler in ("gaussian", "mixture"):
        drawn = draw(codes, sampler, 100)
        assert drawn.shape == (100, codes.shape[1])
        assert ((drawn - codes.mean(dim=0)).abs() <= 6 * (codes.std(dim=0) + VARIANCE**0.5)).all()


def test_a_fit_is_the_same_for_the_same_codes_and_leaves_the_random_state() -> None:
    codes = torch.rand(300, 4)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, again = fit_codes(codes), fit_codes(codes)
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()
    assert 1 < len(first.weights) <= NUM_COMPONENTS


def test_slerp_goes_along_the_sphere_at_an_even_pace() -> None:
    first, second = torch.tensor([2.0, 0, 0]), torch.tensor([0, 0, 2.0])
    codes = slerp(first, second, torch.linspace(0, 1, 4))
    angles = torch.tensor([0.0, 30, 60, 90]).deg2rad()
    expected = 2 * torch.stack([angles.cos(), torch.zeros(4), angles.sin()], dim=1)
    torch.testing.assert_close(codes, expected)


def test_slerp_of_codes_on_one_line_is_straight() -> None:
    for second in (torch.tensor([1.0, 2]), torch.tensor([3.0, 6]), torch.tensor([-1.0, -2])):
        codes = slerp(torch.tensor([1.0, 2]), second, torch.tensor([0, 0.5, 1]))
        torch.testing.assert_close(
            codes, torch.stack([torch.tensor([1.0, 2]), (torch.tensor([1.0, 2]) + second) / 2, second])
        )
