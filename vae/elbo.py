"""The two terms of the evidence lower bound and their units: float32 from inputs of any precision."""

import math

import torch
from torch import Tensor

MIN_VARIANCE = 1 / (2 * math.pi * 255**2)  # the Gaussian's density then peaks at 1 per gray level


def squared_error(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Sum of squared errors over an image's pixels and channels.

    Up to a constant, this is the negative log-likelihood of a Gaussian decoder with variance 1/2.

    Args:
        reconstruction: (B, 3, H, W), in any range.
        images: (B, 3, H, W), in [0, 1].

    Returns:
        (B,), never negative.

    Raises:
        ValueError: if the shapes differ, which broadcasting would hide.
    """
    _check_same_shape("reconstruction and images", reconstruction, images)
    return (reconstruction.float() - images.float()).square().flatten(1).sum(dim=1)


def gaussian_nll(error: Tensor, variance: Tensor, num_values: int) -> Tensor:
    """Negative log-likelihood of an image under a Gaussian decoder that has one variance for all its values.

    It is smallest where the variance is the mean squared error of a value: the optimal sigma of Rybkin, Daniilidis
    & Levine 2021, "Simple and Effective VAE Training with Calibrated Decoders".

    Args:
        error: sum of squared errors over an image's values, which are in [0, 1]. Given its mean over images, the result
            is a mean over images too.
        variance: of a value around its reconstruction, over 0; its shape broadcasts against ``error``.
        num_values: pixels times channels of an image.

    Returns:
        Nats, for values in gray levels, 0 to 255: never negative for a variance of MIN_VARIANCE or more.
    """
    return 0.5 * (error / variance + num_values * (2 * math.pi * 255**2 * variance).log())


def bits_per_dim(nats: Tensor, num_values: int) -> Tensor:
    """Convert an image's nats to bits per color value; a plain 8-bit value takes 8."""
    return nats / (num_values * math.log(2))


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL divergence from a diagonal Gaussian posterior to the standard normal prior.

    Kingma & Welling 2013 (arXiv:1312.6114), Appendix B, with the sign flipped.

    Args:
        mean: (B, D), the posterior's mean.
        log_variance: (B, D), natural logarithm of its variance; up to 88, beyond which exp overflows float32.

    Returns:
        (B,), in nats: 0 where posterior and prior agree, never negative.

    Raises:
        ValueError: if the shapes differ, which broadcasting would hide.
    """
    _check_same_shape("mean and log_variance", mean, log_variance)
    mean, log_variance = mean.float(), log_variance.float()
    # expm1: near the prior, exp(x) - 1 - x would cancel to rounding noise of either sign
    return 0.5 * (torch.expm1(log_variance) - log_variance + mean.square()).sum(dim=1)


def _check_same_shape(names: str, first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise ValueError(f"{names} must have the same shape, got {tuple(first.shape)} and {tuple(second.shape)}.")
