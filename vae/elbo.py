"""The two terms of the evidence lower bound, one value for each image, in float32 whatever the precision."""

import torch
from torch import Tensor


def squared_error(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Sum of squared errors over an image's pixels and channels.

    Up to scale and constant the negative log-likelihood of a Gaussian decoder with variance 1/2.

    Args:
        reconstruction: (B, 3, H, W), of any range.
        images: (B, 3, H, W), in [0, 1].

    Returns:
        (B,), never negative.

    Raises:
        ValueError: if the shapes differ, which broadcasting would hide.
    """
    _check_same_shape("reconstruction and images", reconstruction, images)
    return (reconstruction.float() - images.float()).square().flatten(1).sum(dim=1)


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL divergence from a diagonal Gaussian posterior to the standard normal prior.

    Kingma & Welling 2013 (arXiv:1312.6114), Appendix B, with the sign turned.

    Args:
        mean: (B, D), the posterior's mean.
        log_variance: (B, D), natural logarithm of its variance; finite up to 88, where exp leaves float32.

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
        raise ValueError(f"{names} must have one shape, got {tuple(first.shape)} and {tuple(second.shape)}.")
