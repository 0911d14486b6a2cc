"""The distribution of codes, from which new ones are drawn: ex-post density estimation.

An image's code is the mean of its posterior. Ghosh, Sajjadi, Vergari, Black & Schölkopf 2020,
"From Variational to Deterministic Autoencoders", section 4.
"""

import warnings
from typing import Literal, NamedTuple

import torch
from torch import Tensor

NUM_COMPONENTS = 200  # at most, in the mixture
CODES_PER_COMPONENT = 30  # at least, on average
NUM_MIXED = 128  # the mixture models this many of the longest principal directions, and a Gaussian the others
NUM_ITERATIONS = 5  # for EM, after k-means; more take ten times as long, and unseen codes fit no better
REG_COVAR = 0.01  # minimum variance of a component (the prior's is 1); with less, unseen codes fit far worse

Sampler = Literal["prior", "gaussian", "mixture"]


class Codes(NamedTuple):
    """The distribution of codes in the latent space, as plain tensors.

    A code is ``center + coordinates @ directions``. For ``gaussian`` all coordinates are standard normal; for
    ``mixture`` the first M are drawn from a mixture of Gaussians, and the others are standard normal.
    """

    center: Tensor  # (D,)
    directions: Tensor  # (D, D), principal, longest first; each as long as the codes' standard deviation along it
    weights: Tensor  # (K,), one for each component of the mixture
    means: Tensor  # (K, M)
    factors: Tensor  # (K, M, M); a covariance is its factor times the factor's transpose

    def draw(self, noise: Tensor, sampler: Literal["gaussian", "mixture"], generator: torch.Generator) -> Tensor:
        """Turn standard normal ``noise`` (N, D) into codes (N, D); ``generator`` chooses the components."""
        if sampler == "mixture":
            component = torch.multinomial(self.weights, len(noise), replacement=True, generator=generator)
            mixed, others = noise.tensor_split([self.means.shape[1]], dim=1)
            mixed = self.means[component] + torch.einsum("nij,nj->ni", self.factors[component], mixed)
            noise = torch.cat([mixed, others], dim=1)
        return self.center + noise @ self.directions


@torch.autocast("cpu", enabled=False)  # under bf16-mixed, float32 would become bfloat16
def fit_codes(codes: Tensor) -> Codes:
    """Fit the distribution of two or more codes (N, D); the same codes give the same result."""
    from sklearn.exceptions import ConvergenceWarning  # takes a second to import, so only fitting waits for it
    from sklearn.mixture import GaussianMixture

    codes = codes.to("cpu", torch.float32, copy=True)  # in float64, all this takes twice as long
    center = codes.mean(dim=0)
    codes -= center
    covariance = codes.T @ codes / (len(codes) - 1)
    variances, directions = (found.flip(-1) for found in torch.linalg.eigh(covariance))  # longest first
    deviations = variances.clamp(min=1e-12).sqrt()  # 0 if all codes are equal
    num_mixed = min(NUM_MIXED, len(deviations))
    num_components = min(max(1, len(codes) // CODES_PER_COMPONENT), NUM_COMPONENTS)
    mixed = codes @ directions[:, :num_mixed]  # not scaled: long directions should count most in k-means
    mixture = GaussianMixture(num_components, reg_covar=REG_COVAR, max_iter=NUM_ITERATIONS, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # few distinct codes, or EM has not converged yet
        mixture.fit(mixed.numpy())
    weights, means, covariances = map(torch.from_numpy, (mixture.weights_, mixture.means_, mixture.covariances_))
    scale = deviations[:num_mixed]
    factors = torch.linalg.cholesky(covariances) / scale[:, None]
    found = (center, (directions * deviations).T, weights, means / scale, factors)
    return Codes(*(tensor.float().contiguous() for tensor in found))


def slerp(first: Tensor, second: Tensor, shares: Tensor) -> Tensor:
    """Interpolate spherically between two codes (D,), where ``shares`` (N,) of the way are done: (N, D).

    Shoemake 1985, "Animating Rotation with Quaternion Curves". A straight line would pass through codes that are
    shorter than any image's.
    """
    shares = shares[:, None]
    angle = torch.arccos(torch.cosine_similarity(first, second, dim=0).clamp(-1, 1))
    if angle.sin() < 1e-4:  # on one line there is no arc, or more than one
        return torch.lerp(first, second, shares)
    return (((1 - shares) * angle).sin() * first + (shares * angle).sin() * second) / angle.sin()
