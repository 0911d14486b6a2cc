"""Where a VAE draws new images from, and how good they are."""

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from datamodules.folder import Images
from evaluation import evaluating
from vae.codes import Sampler, fit_codes
from vae.metrics import DensityCoverage, Inception, NearerThanReal, Pixels

BATCH = 256  # images that are encoded or drawn at a time
KID_SUBSET = 1000  # images, as in torchmetrics


class FitSamplers(Callback):
    """Fit the samplers of a VAE to the codes of training images after every validation, so that a checkpoint has them.

    Args:
        num_images: from all over the training set, ever the same ones; after the last of ``max_epochs``, all.

    Raises:
        ValueError: if they are fewer than two.
    """

    def __init__(self, num_images: int = 2048) -> None:
        if num_images < 2:
            raise ValueError(f"FitSamplers: num_images is {num_images}, needs 2 or more.")
        self.num_images = num_images

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and trainer.is_global_zero:
            images = trainer.datamodule.images("train")  # type: ignore[attr-defined]
            is_last = trainer.current_epoch + 1 == trainer.max_epochs
            number = len(images) if is_last else min(self.num_images, len(images))
            with evaluating(pl_module), trainer.precision_plugin.forward_context():
                codes = [pl_module.encode(batch)[0] for batch in batches(trainer, images, number)]
            pl_module.codes = fit_codes(torch.cat(codes))


class MeasureSamples(Callback):
    """In ``test``, compare samples of a VAE with the test images: ``test/<sampler>_fid``, ``_kid`` and so on.

    Args:
        num_samples: of each sampler that the checkpoint has.
        features: by which images are compared: their ``pixels`` in small; ``inception``, as in papers; or a module
            that maps images (B, 3, H, W) in [0, 1] to (B, F), the distance of which tells how different they look.

    Raises:
        FeaturesError: at the start of a test, if the features are not to be had.
    """

    def __init__(
        self, num_samples: int = 1000, features: Literal["pixels", "inception"] | nn.Module = "pixels"
    ) -> None:
        self.num_samples, self.features = num_samples, features

    def on_test_start(self, trainer: Trainer, pl_module: Any) -> None:
        named = {"pixels": Pixels, "inception": Inception}
        net = named[self.features]() if isinstance(self.features, str) else self.features
        self.net = net.to(pl_module.device).eval()
        images = trainer.datamodule.images("train")  # type: ignore[attr-defined]
        training = torch.cat([self.net(batch) for batch in batches(trainer, images, len(images))])
        samplers: list[Sampler] = ["normal", "gaussian", "mixture"] if pl_module.codes else ["normal"]
        self.quality = {sampler: sample_quality(training).to(pl_module.device) for sampler in samplers}
        self.num_real = 0

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: Tensor,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.num_real += len(batch)
        features = self.net(batch)
        for quality in self.quality.values():
            quality.update(features, real=True)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        num_samples = math.ceil(self.num_samples / trainer.world_size)  # in each process
        num_real = trainer.strategy.reduce(torch.tensor(self.num_real, device=pl_module.device), reduce_op="sum")
        for sampler, quality in self.quality.items():
            for number, start in enumerate(range(0, num_samples, BATCH)):
                seed = number * trainer.world_size + trainer.global_rank
                samples = pl_module.sample(min(BATCH, num_samples - start), seed, sampler)
                quality.update(self.net(samples), real=False)
            quality["kid"].subset_size = min(KID_SUBSET, self.num_samples, int(num_real))
            values = quality.compute()
            values["kid"], _ = values["kid"]  # and its standard deviation over the subsets
            measured = {f"test/{sampler}_{name}": value.float() for name, value in values.items()}
            pl_module.log_dict(measured, sync_dist=True)  # the same in all processes


class Features(nn.Identity):
    """Lets torchmetrics take features for images."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


def sample_quality(training: Tensor) -> MetricCollection:
    """Return the measures of samples, all by features (B, F), given those (N, F) of the training images."""
    features = Features(training.shape[1])
    measures: dict[str, Metric | MetricCollection] = {
        "fid": FrechetInceptionDistance(features),
        "kid": KernelInceptionDistance(features),
        "density_coverage": DensityCoverage(),
        "nearer_than_real": NearerThanReal(training),
    }
    return MetricCollection(measures, compute_groups=False)


def batches(trainer: Trainer, images: Images, number: int) -> Iterator[Tensor]:
    """Yield a number of images from all over a set, ever the same ones, as batches on the device."""
    for indices in torch.linspace(0, len(images) - 1, number).long().split(BATCH):
        yield trainer.strategy.batch_to_device(images.__getitems__(indices.tolist()))
