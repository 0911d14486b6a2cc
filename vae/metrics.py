"""How good samples are: the features that images are compared by, and the measures that torchmetrics lacks."""

from pickle import UnpicklingError

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image.fid import NoTrainInceptionV3
from torchmetrics.utilities import dim_zero_cat

from system.errors import PigmentError, reason


class Pixels(nn.Sequential):
    """Map images (B, 3, H, W) in [0, 1] to their pixels at 16 x 16, (B, 768), where blur hardly shows."""

    def __init__(self) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(16), nn.Flatten())


class Inception(nn.Module):
    """Map images (B, 3, H, W) in [0, 1] to the features (B, 2048) that papers compare images by.

    Raises:
        PigmentError: if the network or its weights cannot be loaded.
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            self.net = NoTrainInceptionV3("inception-v3-compat", ["2048"])
        except ModuleNotFoundError:
            raise PigmentError(
                "the features 'inception' need torch-fidelity, which is not installed: .venv/bin/pip install "
                "'torch-fidelity>=0.3,<1'. Or compare images by their 'pixels'."
            ) from None
        except (OSError, RuntimeError, UnpicklingError, EOFError) as error:
            raise PigmentError(
                f"the weights of the features 'inception' could not be downloaded or read ({reason(error)}). Try "
                "again, or compare images by their 'pixels'."
            ) from error

    def forward(self, images: Tensor) -> Tensor:
        return self.net((255 * images).round().byte())


class Features(nn.Identity):
    """Let torchmetrics accept features in place of images."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


class DensityCoverage(Metric):
    """How real samples look, and how much of the real data they cover, judged by the real images' neighborhoods.

    The neighborhood of a real image reaches to its k-th nearest real one. Density is the number of neighborhoods a
    sample lies in, on average, divided by k: about 1 if samples are like real images, 0 if not, above 1 if they
    crowd where real ones do. Coverage is the share of neighborhoods that hold a sample, at most 1. Naeem, Oh, Uh, Choi
    & Yoo 2020, "Reliable Fidelity and Diversity Metrics for Generative Models", section 3.

    Args:
        num_neighbors: the paper's k; with fewer real images, as many as each has.
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
        (self.real if real else self.samples).append(features)

    def compute(self) -> dict[str, Tensor]:
        real, samples = dim_zero_cat(self.real), dim_zero_cat(self.samples)
        num_neighbors = min(self.num_neighbors, len(real) - 1)
        num_within, is_covered = torch.zeros(len(samples), device=samples.device), []
        for part in real.split(1024):  # all distances at once might not fit into memory
            nearest = torch.cdist(part, real).topk(num_neighbors + 1, largest=False).values  # itself included
            is_within = torch.cdist(part, samples) < nearest[:, -1:]
            num_within += is_within.sum(dim=0)
            is_covered.append(is_within.any(dim=1))
        return {"density": num_within.mean() / num_neighbors, "coverage": torch.cat(is_covered).float().mean()}


class NearerThanReal(Metric):
    """The share of samples that are nearer to a training image than the median real image is.

    About 1/2 if samples are as new as the real images, near 1 if they are copies of training images.

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
        distances = torch.cdist(features, self.nearest_to).amin(dim=1)
        (self.real if real else self.samples).append(distances)

    def compute(self) -> Tensor:
        return (dim_zero_cat(self.samples) < dim_zero_cat(self.real).median()).float().mean()
