"""Where a VAE draws new images from, and how good they are."""

import math
from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from callbacks.schedule import is_due
from datamodules.folder import Images, evenly_spaced
from vae.codes import Sampler
from vae.metrics import DensityCoverage, Inception, NearerThanReal, Pixels

BATCH = 256  # images encoded or drawn at a time
MAX_FITTED = 10_000  # images after the last epoch; while fitting, a code of 2,048 latents takes 32 KB of memory
KID_SUBSET = 1000  # images, as in torchmetrics


class FitSamplers(Callback):
    """Let a VAE fit its samplers to training images when validation starts, so that every checkpoint has them.

    After an epoch without a fit, a checkpoint has the samplers of the latest fit, which suit its weights less well.

    Unlike callbacks that only watch, it adds something to the model. That happens before any picture is drawn, whatever
    order the callbacks are listed in; training does not use it.

    Args:
        num_images: evenly spaced through the training set, the same ones every time; after the last of ``max_epochs``,
            10,000 if that is more. ``python -m vae fit`` takes all, and also serves runs that end early.
        every_n_epochs: epochs from one fit to the next; the last of ``max_epochs`` always has one.

    Raises:
        ValueError: if there are fewer than two images, or ``every_n_epochs`` is not positive.
    """

    def __init__(self, num_images: int = 2048, every_n_epochs: int = 1) -> None:
        if num_images < 2 or every_n_epochs < 1:
            raise ValueError(
                f"FitSamplers: num_images is {num_images}, must be 2 or more; every_n_epochs is {every_n_epochs}, must "
                "be 1 or more."
            )
        self.num_images, self.every_n_epochs = num_images, every_n_epochs

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking or not is_due(trainer, self.every_n_epochs):
            return
        if trainer.is_global_zero:
            images = trainer.datamodule.images("train")  # type: ignore[attr-defined]
            is_last = trainer.current_epoch + 1 == trainer.max_epochs
            num_images = min(max(self.num_images, MAX_FITTED) if is_last else self.num_images, len(images))
            with trainer.precision_plugin.forward_context():  # as fast as training
                pl_module.fit_samplers(batches(trainer, images, num_images))
        pl_module.codes = trainer.strategy.broadcast(pl_module.codes)


class MeasureSamples(Callback):
    """In ``test``, compare the samples of each sampler that the checkpoint has with the test images.

    Logs ``test/<sampler>_fid`` and ``_kid`` (Fréchet and kernel distance of their features, 0 if alike), ``_density``,
    ``_coverage`` and ``_nearer_than_real`` (see :mod:`vae.metrics`).

    Args:
        num_samples: of each sampler; papers that report FID draw 10,000 or more.
        features: what images are compared by: ``pixels`` at a small size; ``inception``, as in papers; or a module that
            maps images (B, 3, H, W) in [0, 1] to (B, F), where distance means how different they look.

    Raises:
        ValueError: if there are fewer than two samples.
        PigmentError: when a test starts, if the features cannot be loaded.
    """

    def __init__(
        self, num_samples: int = 1000, features: Literal["pixels", "inception"] | nn.Module = "pixels"
    ) -> None:
        if num_samples < 2:
            raise ValueError(f"MeasureSamples: num_samples is {num_samples}, must be 2 or more.")
        self.num_samples, self.features = num_samples, features

    def on_test_start(self, trainer: Trainer, pl_module: Any) -> None:
        named = {"pixels": Pixels, "inception": Inception}
        net = named[self.features]() if isinstance(self.features, str) else self.features
        self.net = net.to(pl_module.device).eval()
        self.real: list[Tensor] = []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: Tensor,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.real.append(self._describe(batch))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        images = trainer.datamodule.images("train")  # type: ignore[attr-defined]
        real = torch.cat(self.real)
        num_real = int(trainer.strategy.reduce(torch.tensor(len(real), device=real.device), reduce_op="sum"))
        if num_real < 2 or not len(images):
            there_are = f"{num_real} test and {len(images)} training images"
            rank_zero_info(f"Samples: not measured. There are {there_are}; 2 and 1 are needed.")
            return
        training = torch.cat([self._describe(batch) for batch in batches(trainer, images, len(images))])
        for sampler in get_args(Sampler) if pl_module.codes else ("prior",):
            quality = sample_quality(training, min(num_real, self.num_samples)).to(real.device)
            for part in real.split(BATCH):  # all distances to the training images at once might not fit in memory
                quality.update(part, real=True)
            num_samples = math.ceil(self.num_samples / trainer.world_size)  # in each process
            for number, start in enumerate(range(0, num_samples, BATCH)):
                seed = number * trainer.world_size + trainer.global_rank
                samples = pl_module.sample(min(BATCH, num_samples - start), seed, sampler)
                quality.update(self._describe(samples), real=False)
            values = quality.compute()
            values["kid"] = values["kid"][0]  # the mean over subsets, without its deviation
            measured = {f"test/{sampler}_{name}": value.float() for name, value in values.items()}
            pl_module.log_dict(measured, sync_dist=True)  # the same in all processes

    def _describe(self, images: Tensor) -> Tensor:
        features = self.net(images)
        if features.device.type == "mps":
            features = features.cpu()  # Apple's GPUs have no float64; this line was never run on one
        return features.double()  # in TF32, distances between nearly equal images would be noise


class Features(nn.Identity):
    """Let torchmetrics accept features in place of images."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


def sample_quality(training: Tensor, num_compared: int) -> MetricCollection:
    """Return the measures of samples, all based on features (B, F).

    Args:
        training: (N, F), the training images' features.
        num_compared: the number of real images or of samples, whichever is smaller.
    """
    features = Features(training.shape[1])
    measures: dict[str, Metric | MetricCollection] = {
        "fid": FrechetInceptionDistance(features),
        "kid": KernelInceptionDistance(features, subset_size=min(KID_SUBSET, num_compared)),
        "density_coverage": DensityCoverage(),
        "nearer_than_real": NearerThanReal(training),
    }
    return MetricCollection(measures, compute_groups=False)


def batches(trainer: Trainer, images: Images, num_images: int) -> Iterator[Tensor]:
    """Yield a number of images, evenly spaced through a set, as batches on the device."""
    for indices in evenly_spaced(images, num_images).split(BATCH):
        yield trainer.strategy.batch_to_device(images.__getitems__(indices.tolist()))
