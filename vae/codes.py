"""The distribution of codes, from which new ones are drawn: ex-post density estimation.

An image's code is the mean of its posterior. Ghosh, Sajjadi, Vergari, Black & Schölkopf 2020,
"From Variational to Deterministic Autoencoders", section 4.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

NUM_COMPONENTS = 200  # at most, in the mixture
CODES_PER_COMPONENT = 30  # at least, on average
NUM_MIXED = 512  # the mixture models this many of the longest principal directions, and a Gaussian the others
RANK = 32  # directions in which a component is wide
VARIANCE = 0.01  # of a component in all directions (the prior's is 1); with less, unseen codes fit far worse

Sampler = Literal["prior", "gaussian", "mixture"]


class Codes(NamedTuple):
    """The distribution of codes in the latent space, as plain tensors.

    A code is ``center + coordinates @ directions``. For ``gaussian`` all coordinates are standard normal; for
    ``mixture`` the first M are drawn from a mixture of Gaussians, and the others are standard normal. Each component
    is wide in a few directions, and has a little variance in all: a mixture of probabilistic principal component
    analyzers (Tipping & Bishop 1999).
    """

    center: Tensor  # (D,)
    directions: Tensor  # (D, D), principal, longest first; each as long as the codes' standard deviation along it
    weights: Tensor  # (K,), one for each component of the mixture
    means: Tensor  # (K, M)
    factors: Tensor  # (K, M, R); a covariance is its factor times the factor's transpose, and the variances
    deviations: Tensor = torch.tensor(0.0)  # (M,), roots of the variances; older checkpoints have them in the factors

    def draw(self, noise: Tensor, sampler: Literal["gaussian", "mixture"], generator: torch.Generator) -> Tensor:
        """Turn standard normal ``noise`` (N, D) into codes (N, D); ``generator`` chooses places in the components."""
        if sampler == "mixture":
            component = torch.multinomial(self.weights, len(noise), replacement=True, generator=generator)
            place = torch.randn(len(noise), self.factors.shape[2], generator=generator)
            mixed, others = noise.tensor_split([self.means.shape[1]], dim=1)
            mixed = self.means[component] + self.deviations * mixed
            mixed = mixed + torch.einsum("nij,nj->ni", self.factors[component], place)
            noise = torch.cat([mixed, others], dim=1)
        return self.center + noise @ self.directions


@torch.autocast("cpu", enabled=False)  # under bf16-mixed, float32 would become bfloat16
def fit_codes(codes: Tensor) -> Codes:
    """Fit the distribution of two or more codes (N, D); the same codes give the same result."""
    from sklearn.cluster import KMeans  # takes a second to import, so only fitting waits for it

    codes = codes.to("cpu", torch.float32, copy=True)  # in float64, all this takes twice as long
    center = codes.mean(dim=0)
    codes -= center
    covariance = codes.T @ codes / (len(codes) - 1)
    variances, directions = (found.flip(-1) for found in torch.linalg.eigh(covariance))  # longest first
    directions = fix_signs(directions.T).T
    lengths = variances.clamp(min=1e-12).sqrt()  # 0 if all codes are equal
    num_mixed = min(NUM_MIXED, len(lengths))
    mixed = codes @ directions[:, :num_mixed]  # not scaled: long directions should count most in k-means
    num_components = min(max(1, len(codes) // CODES_PER_COMPONENT), NUM_COMPONENTS, len(mixed.unique(dim=0)))
    labels = torch.from_numpy(KMeans(num_components, random_state=0).fit(mixed.numpy()).labels_)
    parts = [mixed[labels == component] for component in range(num_components)]
    means, factors = torch.stack([part.mean(dim=0) for part in parts]), torch.zeros(num_components, num_mixed, RANK)
    for part, mean, factor in zip(parts, means, factors, strict=True):
        _, sizes, axes = torch.linalg.svd(part - mean, full_matrices=False)
        wide = (sizes[:RANK, None] * axes[:RANK]).T / max(1, len(part) - 1) ** 0.5
        factor[:, : wide.shape[1]] = wide
    scale = lengths[:num_mixed]
    weights = torch.tensor([len(part) / len(codes) for part in parts])
    found = (center, (directions * lengths).T, weights, means / scale, factors / scale[:, None], VARIANCE**0.5 / scale)
    return Codes(*(tensor.contiguous() for tensor in found))


def fix_signs(directions: Tensor) -> Tensor:
    """Make the largest entry, in magnitude, of each direction (N, D) positive: decompositions leave the sign open."""
    return directions * directions.gather(1, directions.abs().argmax(dim=1, keepdim=True)).sign()


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
