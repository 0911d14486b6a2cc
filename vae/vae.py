"""How the ConvVAE learns, and what it can do once it has."""

import math
from typing import Any, Literal, get_args

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import Metric, MetricCollection
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from evaluation import LogsMeans, evaluating, exact_float32
from vae.codes import Codes, NotFittedError, Sampler
from vae.elbo import MIN_VARIANCE, bits_per_dim, gaussian_nll, kl_divergence, squared_error
from vae.networks import Activation, ConvDecoder, ConvEncoder

LOG_VARIANCE_RANGE = (-30.0, 20.0)  # exp stays finite in float32 and far from any variance that is of use
MOMENTUM = 0.1  # of the running variance, as BatchNorm's

Likelihood = Literal["fixed", "optimal"]
Schedule = Literal["constant", "cosine"]


class ConvVAE(LogsMeans):
    """Convolutional variational autoencoder for square RGB images in [0, 1].

    While training, the decoder sees a draw from the posterior; in validation and test the posterior's mean, so that
    these are repeatable. ``loss = reconstruction + kl``: both are summed over an image's values or latents, and
    averaged over the batch. The defaults are the report's recipe. Every recipe logs ``bits_per_dim``, the negative ELBO
    in bits per gray level, by which recipes compare, and ``sigma``, the decoder's in gray levels.

    Args:
        image_size: height and width of the images, in pixels; a multiple of 4.
        latent_dim: number of latents.
        lr: learning rate of Adam.
        lr_schedule: ``cosine`` takes the learning rate to 0 by the end of the run; a run that is lengthened afterwards
            goes back up.
        likelihood: of the decoder, a Gaussian. ``fixed``: its variance is 1/2, so that ``reconstruction`` is the
            squared error. ``optimal``: the variance is the mean squared error of each batch, that of all processes,
            and ``reconstruction`` the negative log-likelihood; in evaluation it is a running mean over the batches.
        kl_warmup_steps: steps over which the KL divergence's weight in the training loss grows from 0 to 1.
        activation: at the end of the decoder.

    Raises:
        ValueError: if ``image_size`` is not a positive multiple of 4, another number is too small, or a name unknown.
    """

    variance: Tensor  # (), of the decoder's Gaussian; with likelihood optimal, a running mean over the batches

    def __init__(
        self,
        image_size: int,
        latent_dim: int,
        lr: float,
        lr_schedule: Schedule = "constant",
        likelihood: Likelihood = "fixed",
        kl_warmup_steps: int = 0,
        activation: Activation = "none",
    ) -> None:
        super().__init__()
        if image_size <= 0 or image_size % 4:
            raise ValueError(
                f"ConvVAE halves images twice and doubles them twice, so their size must be a multiple of 4, "
                f"got {image_size}. Set data.init_args.size to {max(4, round(image_size / 4) * 4)}."
            )
        if latent_dim < 1 or not lr > 0 or kl_warmup_steps < 0:
            raise ValueError(
                f"model.init_args: latent_dim is {latent_dim}, needs 1 or more; lr is {lr}, needs over 0; "
                f"kl_warmup_steps is {kl_warmup_steps}, needs 0 or more."
            )
        check_choice("model.init_args.lr_schedule", lr_schedule, Schedule)
        check_choice("model.init_args.likelihood", likelihood, Likelihood)
        check_choice("model.init_args.activation", activation, Activation)
        self.save_hyperparameters()
        self.num_values = 3 * image_size**2  # of an image
        self.image_size, self.latent_dim, self.lr = image_size, latent_dim, lr
        self.likelihood, self.kl_warmup_steps, self.lr_schedule = likelihood, kl_warmup_steps, lr_schedule
        self.encoder = ConvEncoder(image_size, latent_dim)
        self.decoder = ConvDecoder(image_size, latent_dim, activation)
        self.register_buffer("variance", torch.tensor(0.5))
        self.codes: Codes | None = None  # of the training images, as last fitted
        self.to(memory_format=torch.channels_last)  # convolutions are faster
        quality: dict[str, Metric | MetricCollection] = {
            "psnr": PeakSignalNoiseRatio(data_range=1.0, reduction="elementwise_mean", dim=(1, 2, 3))
        }
        if image_size > 10:  # its window is 11 pixels wide
            quality["ssim"] = StructuralSimilarityIndexMeasure(data_range=1.0)
        self.quality = MetricCollection(quality, prefix="test/")

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (B, 3, S, S) in [0, 1] to the posterior's mean and log-variance, (B, latent_dim), float32."""
        if images.shape[2:] != (self.image_size, self.image_size):
            raise ValueError(f"this ConvVAE takes {self.image_size} px images, got {tuple(images.shape)}")
        mean, log_variance = self.encoder(images)
        return mean.float(), log_variance.float().clamp(*LOG_VARIANCE_RANGE)

    def decode(self, latents: Tensor) -> Tensor:
        """Map latents (B, latent_dim) to images (B, 3, S, S) in [0, 1], float32."""
        return self.decoder(latents).clamp(0, 1)

    def reconstruct(self, images: Tensor) -> Tensor:
        """Decode the posterior's mean: images (B, 3, S, S) in [0, 1] to images alike, as in evaluation."""
        with evaluating(self):
            return self.decode(self.encode(images)[0])

    def sample(self, num_images: int, seed: int, sampler: Sampler = "prior") -> Tensor:
        """Decode random latents: new images (num_images, 3, S, S) in [0, 1], the same for the same seed.

        Args:
            sampler: ``prior`` draws latents from the standard normal, ``gaussian`` and ``mixture`` from what
                :class:`callbacks.FitSamplers` or ``python -m vae fit`` has fitted to the codes of the training images.

        Raises:
            NotFittedError: if nothing was.
            ValueError: if there is no such sampler.
        """
        check_choice("sampler", sampler, Sampler)
        # drawn on the CPU, so that a seed gives the same latents on every device
        generator = torch.Generator().manual_seed(seed)
        latents = torch.randn(num_images, self.latent_dim, generator=generator)
        if sampler != "prior":
            latents = self.fitted_codes().draw(latents, sampler, generator)
        with evaluating(self):
            return self.decode(latents.to(self.device))

    def fitted_codes(self) -> Codes:
        """Return the distribution of the training images' codes.

        Raises:
            NotFittedError: if none was fitted.
        """
        if self.codes is None:
            raise NotFittedError(
                "nothing was fitted to the codes of this VAE's training images yet, so its only sampler is 'prior'. "
                "Train with callbacks.FitSamplers, or fit a checkpoint by python -m vae fit."
            )
        return self.codes

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["codes"] = self.codes and self.codes._asdict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"].setdefault("variance", self.variance)  # older ones had only the report's recipe
        fitted = checkpoint.get("codes")
        self.codes = fitted and Codes(**{name: tensor.cpu() for name, tensor in fitted.items()})

    def training_step(self, images: Tensor, batch_idx: int) -> Tensor:
        mean, log_variance = self.encode(images)
        latents = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        error = squared_error(self.decoder(latents), images).mean()
        kl = kl_divergence(mean, log_variance).mean()
        # detached: at its optimum the likelihood does not change with the variance, so the gradient is the same
        variance = self._calibrate(error.detach()) if self.likelihood == "optimal" else self.variance
        kl_weight = min(1.0, self.trainer.global_step / self.kl_warmup_steps) if self.kl_warmup_steps else 1.0
        return self._log_loss("train", error, kl, variance, kl_weight, len(images))

    def validation_step(self, images: Tensor, batch_idx: int) -> None:
        self._evaluate("val", images)

    def test_step(self, images: Tensor, batch_idx: int) -> None:
        reconstruction = self._evaluate("test", images).clamp(0, 1)
        with exact_float32(images.device.type):  # SSIM subtracts squares that nearly agree
            self.quality.update(reconstruction, images)
        self.log_dict(self.quality)

    def predict_step(self, images: Tensor, batch_idx: int) -> Tensor:
        return self.reconstruct(images)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        # fused takes a seventh of the time on a CPU, but Lightning cannot clip its gradients under mixed precision
        fused = True if self.trainer.gradient_clip_val is None else None
        optimizer = Adam(self.parameters(), lr=self.lr, fused=fused)
        if self.lr_schedule == "constant":
            return optimizer
        schedule = LambdaLR(optimizer, self._cosine)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _cosine(self, step: int) -> float:
        """Return the share of ``lr`` after a number of steps."""
        # steps are not counted at step 0: Lightning would build the training loader, which before a checkpoint is
        # restored would begin at the first batch
        return (1 + math.cos(math.pi * step / self.trainer.estimated_stepping_batches)) / 2 if step else 1.0

    def _calibrate(self, error: Tensor) -> Tensor:
        """Return the variance at which a batch is likeliest, that of all processes, and remember it."""
        optimal = self.trainer.strategy.reduce(error / self.num_values, reduce_op="mean").clamp(min=MIN_VARIANCE)
        self.variance.lerp_(optimal, max(MOMENTUM, 1 / (self.trainer.global_step + 1)))
        return optimal

    def _evaluate(self, stage: str, images: Tensor) -> Tensor:
        """Log the loss for the posterior's mean, and return its decoding."""
        mean, log_variance = self.encode(images)
        reconstruction = self.decoder(mean)
        error, kl = squared_error(reconstruction, images).mean(), kl_divergence(mean, log_variance).mean()
        self._log_loss(stage, error, kl, self.variance, 1.0, len(images))
        return reconstruction

    def _log_loss(
        self, stage: str, error: Tensor, kl: Tensor, variance: Tensor, kl_weight: float, num_images: int
    ) -> Tensor:
        nll = gaussian_nll(error, variance, self.num_values)
        reconstruction = nll if self.likelihood == "optimal" else error
        terms = {
            "loss": reconstruction + kl_weight * kl,
            "reconstruction": reconstruction,
            "kl": kl,
            "kl_per_latent": kl / self.latent_dim,
            "sigma": 255 * variance.sqrt(),  # gray levels
            "bits_per_dim": bits_per_dim(nll + kl, self.num_values),
        }
        self.log_means({f"{stage}/{name}": value for name, value in terms.items()}, num_images)
        return terms["loss"]


def check_choice(argument: str, given: str, choices: object) -> None:
    """Raise a ValueError if ``given`` is none of a Literal's values; only the command line checks annotations."""
    if given not in get_args(choices):
        raise ValueError(f"{argument} is '{given}', needs to be {' or '.join(get_args(choices))}.")
