"""How good samples are: what measures compare images by, and the measures that torchmetrics lacks."""

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image.fid import NoTrainInceptionV3
from torchmetrics.utilities import dim_zero_cat


class FeaturesError(RuntimeError):
    """The features by which images are to be compared are not to be had; the message says why and what to do."""


class Pixels(nn.Sequential):
    """Map images (B, 3, H, W) in [0, 1] to their pixels at a size of 16 x 16, (B, 768): coarse, but there is no more
    impartial feature that needs no download."""

    def __init__(self) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(16), nn.Flatten())


class Inception(nn.Module):
    """Map images (B, 3, H, W) in [0, 1] to the features (B, 2048) by which papers compare them.

    Raises:
        FeaturesError: if the network or its weights are not to be had.
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            self.net = NoTrainInceptionV3("inception-v3-compat", ["2048"])
        except ModuleNotFoundError:
            raise FeaturesError(
                "the features 'inception' need torch-fidelity, which is not installed: .venv/bin/pip install "
                "'torch-fidelity>=0.3,<1'. Or compare images by their 'pixels'."
            ) from None
        except (OSError, RuntimeError) as error:  # no network; an answer that is something else
            raise FeaturesError(
                f"the weights of the features 'inception' could not be downloaded: {error}. Try again where there is "
                "a network, or compare images by their 'pixels'."
            ) from error

    def forward(self, images: Tensor) -> Tensor:
        return self.net((255 * images).round().byte())


class DensityCoverage(Metric):
    """How many real neighborhoods a sample lies in (1 where the samples are like the real images, less where they are
    not, more in crowds), and the share of them that hold a sample (up to 1).

    A real image's neighborhood reaches to its k-th nearest real one. Naeem, Oh, Uh, Choi & Yoo 2020, "Reliable
    Fidelity and Diversity Metrics for Generative Models", equations 7 and 9.

    Args:
        num_neighbors: the paper's k; of so few real images that they have not as many, one less than there are.
    """

    full_state_update = False
    real: list[Tensor]
    samples: list[Tensor]

    def __init__(self, num_neighbors: int = 5) -> None:
        super().__init__()
        self.num_neighbors = num_neighbors
        self.add_state("real", [], dist_reduce_fx="cat")
        self.add_state("samples", [], dist_reduce_fx="cat")

    def update(self, features: Tensor, real: bool) -> None:
        """Add the features (B, F) of real images or of samples."""
        (self.real if real else self.samples).append(features.float())

    def compute(self) -> dict[str, Tensor]:
        real, samples = dim_zero_cat(self.real), dim_zero_cat(self.samples)
        num_neighbors = min(self.num_neighbors, len(real) - 1)
        radii = torch.cdist(real, real).kthvalue(num_neighbors + 1, dim=1).values  # the nearest is the image itself
        is_within = torch.cdist(real, samples) < radii[:, None]  # (real, samples)
        density = is_within.sum(dim=0).float().mean() / num_neighbors
        return {"density": density, "coverage": is_within.any(dim=1).float().mean()}


class NearerThanReal(Metric):
    """The share of samples that lie nearer to a training image than half of the real images that are none.

    About one half where samples are as new as these; near 1 where they are copies.

    Args:
        training: (N, F), the features of the training images.
    """

    full_state_update = False
    nearest_to: Tensor
    real: list[Tensor]
    samples: list[Tensor]

    def __init__(self, training: Tensor) -> None:
        super().__init__()
        self.register_buffer("nearest_to", training, persistent=False)
        self.add_state("real", [], dist_reduce_fx="cat")
        self.add_state("samples", [], dist_reduce_fx="cat")

    def update(self, features: Tensor, real: bool) -> None:
        """Add the features (B, F) of real images or of samples."""
        distances = torch.cdist(features.float(), self.nearest_to).amin(dim=1)
        (self.real if real else self.samples).append(distances)

    def compute(self) -> Tensor:
        return (dim_zero_cat(self.samples) < dim_zero_cat(self.real).median()).float().mean()
