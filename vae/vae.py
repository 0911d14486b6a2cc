"""How the ConvVAE learns, and what it can do once trained."""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Adam

from epoch_means import LogsMeans, of_all_processes
from images.similarity import psnr, ssim
from learning_rate import warmup_then_cosine
from modes import evaluating
from system.errors import PigmentError, check_choice
from vae.codes import Codes, Sampler, fit_codes
from vae.elbo import MIN_VARIANCE, bits_per_dim, gaussian_nll, kl_divergence, squared_error
from vae.networks import Activation, ConvDecoder, ConvEncoder

LOG_VARIANCE_RANGE = (-30.0, 20.0)  # keeps exp finite in float32; useful variances are far from both ends
MOMENTUM = 0.1  # of the running variance, as in BatchNorm

Likelihood = Literal["fixed", "optimal"]
Schedule = Literal["constant", "cosine"]


class VAE(LogsMeans):
    """Variational autoencoder for square RGB images in [0, 1].

    The decoder sees a draw from the posterior in training, and the posterior's mean in validation and test, which makes
    these repeatable. ``loss = reconstruction + kl``: both are summed over an image's values or latents, and averaged
    over the batch. Every recipe logs ``sigma``, the decoder's standard deviation in gray levels, and ``bits_per_dim``,
    the negative ELBO in bits per color value; compare recipes by the latter.

    Args:
        encoder: maps images (B, 3, S, S) to the posterior's mean and log-variance, (B, latent_dim) each.
        decoder: maps latents (B, latent_dim) to images (B, 3, S, S), float32, which may leave [0, 1].
        image_size: height and width of the images, in pixels.
        latent_dim: number of latents.
        lr: learning rate of Adam.
        lr_schedule: ``cosine`` takes the learning rate to 0 by the end of the run. If a run is extended later, it goes
            back up.
        warmup_steps: steps over which a ``cosine`` schedule first rises to ``lr``.
        likelihood: the decoder is a Gaussian. ``fixed``: its variance is 1/2, which makes ``reconstruction`` the
            squared error. ``optimal``: its variance is the mean squared error of each batch, over all processes, and
            ``reconstruction`` the negative log-likelihood; evaluation uses a running mean over the batches.
    """

    variance: Tensor  # (), of the decoder's Gaussian; with an optimal likelihood, a running mean over the batches

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        image_size: int,
        latent_dim: int,
        lr: float,
        lr_schedule: Schedule,
        warmup_steps: int,
        likelihood: Likelihood,
    ) -> None:
        super().__init__()
        self.num_values = 3 * image_size**2  # in an image
        self.image_size, self.latent_dim, self.lr = image_size, latent_dim, lr
        self.lr_schedule, self.warmup_steps, self.likelihood = lr_schedule, warmup_steps, likelihood
        self.encoder, self.decoder = encoder, decoder
        self.register_buffer("variance", torch.tensor(0.5))
        self.codes: Codes | None = None  # distribution of the training images' codes, as last fitted
        self.to(memory_format=torch.channels_last)  # convolutions are faster

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (B, 3, S, S) in [0, 1] to the posterior's mean and log-variance, (B, latent_dim), float32."""
        if images.shape[2:] != (self.image_size, self.image_size):
            raise ValueError(f"this {type(self).__name__} takes {self.image_size} px images, got {tuple(images.shape)}")
        mean, log_variance = self.encoder(images)
        return mean.float(), log_variance.float().clamp(*LOG_VARIANCE_RANGE)

    def decode(self, latents: Tensor) -> Tensor:
        """Map latents (B, latent_dim) to images (B, 3, S, S) in [0, 1], float32."""
        return self.decoder(latents).clamp(0, 1)

    def reconstruct(self, images: Tensor) -> Tensor:
        """Decode the posterior's mean for images (B, 3, S, S) in [0, 1], as in evaluation."""
        with evaluating(self):
            return self.decode(self.encode(images)[0])

    def compare(self, images: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        """Return images, reconstructions, (B, 3, S, S) in [0, 1], and how close these come, (B,), by their names."""
        return {"original": images, "reconstruction": reconstruction, "PSNR": psnr(reconstruction, images)}

    def sample(self, num_images: int, seed: int, sampler: Sampler = "prior") -> Tensor:
        """Decode random latents: new images (num_images, 3, S, S) in [0, 1], the same for the same seed.

        It raises the same errors as :meth:`draw`.
        """
        with evaluating(self):
            return self.decode(self.draw(num_images, seed, sampler).to(self.device))

    def draw(self, num_images: int, seed: int, sampler: Sampler) -> Tensor:
        """Draw the latents (num_images, latent_dim) of new images on the CPU: a seed gives the same on every device.

        Args:
            sampler: ``prior`` draws latents from the standard normal, ``gaussian`` and ``mixture`` from what
                :meth:`fit_samplers` has fitted.

        Raises:
            PigmentError: if that has not been fitted.
            ValueError: if there is no such sampler.
        """
        check_choice("sampler", sampler, Sampler)
        generator = torch.Generator().manual_seed(seed)
        latents = torch.randn(num_images, self.latent_dim, generator=generator)
        return latents if sampler == "prior" else self.fitted_codes().draw(latents, sampler, generator)

    def fitted_codes(self) -> Codes:
        """Return the distribution of the training images' codes.

        Raises:
            PigmentError: if none has been fitted.
        """
        if self.codes is None:
            raise PigmentError(
                "this VAE's only sampler is 'prior': the others have not been fitted to its training images. "
                "Train with callbacks.FitSamplers, or fit a checkpoint: python -m vae fit"
            )
        return self.codes

    def fit_samplers(self, batches: Iterable[Tensor]) -> None:
        """Fit the samplers ``gaussian`` and ``mixture`` to the codes of images, given as batches (B, 3, S, S)."""
        with evaluating(self):
            self.codes = fit_codes(torch.cat([self.encode(images)[0] for images in batches]))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["codes"] = self.codes and self.codes._asdict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"].setdefault("variance", self.variance)  # older ones have only the report's recipe
        fitted = checkpoint.get("codes")
        self.codes = fitted and Codes(**{name: tensor.float().cpu() for name, tensor in fitted.items()})

    def training_step(self, images: Tensor, batch_idx: int) -> Tensor:
        mean, log_variance = self.encode(images)
        latents = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        error = squared_error(self.decoder(latents), images).mean()
        kl = kl_divergence(mean, log_variance).mean()
        # detached: at its optimum the likelihood does not change with the variance, so the gradient is the same
        variance = self._calibrate(error.detach()) if self.likelihood == "optimal" else self.variance
        terms = self._terms(error, kl, variance)
        self.log_means("train/", terms, len(images))
        return terms["loss"]

    def validation_step(self, images: Tensor, batch_idx: int) -> Tensor:
        return self._evaluate("val/", images)

    def test_step(self, images: Tensor, batch_idx: int) -> Tensor:
        reconstruction = self._evaluate("test/", images)
        quality = {"psnr": psnr(reconstruction, images), "ssim": ssim(reconstruction, images)}
        self.log_means("test/", {name: values.mean() for name, values in quality.items()}, len(images))
        return reconstruction

    def predict_step(self, images: Tensor, batch_idx: int) -> Tensor:
        return self.reconstruct(images)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        # fused takes a seventh of the time on a CPU, but Lightning cannot clip its gradients under mixed precision
        optimizer = Adam(self.parameters(), lr=self.lr, fused=self.trainer.gradient_clip_val is None or None)
        if self.lr_schedule == "constant":
            return optimizer
        return warmup_then_cosine(self, optimizer, self.warmup_steps)

    def _calibrate(self, error: Tensor) -> Tensor:
        """Return the variance that makes the batch of all processes likeliest, and add it to the running mean."""
        optimal = of_all_processes(error / self.num_values).mean().clamp(min=MIN_VARIANCE)
        self.variance.lerp_(optimal, max(MOMENTUM, 1 / (self.trainer.global_step + 1)))
        return optimal

    def _evaluate(self, prefix: str, images: Tensor) -> Tensor:
        """Log the loss for the posterior's mean, and return its reconstruction, in [0, 1]."""
        mean, log_variance = self.encode(images)
        reconstruction = self.decoder(mean)
        error, kl = squared_error(reconstruction, images).mean(), kl_divergence(mean, log_variance).mean()
        self.log_means(prefix, self._terms(error, kl, self.variance), len(images))
        return reconstruction.clamp(0, 1)

    def _terms(self, error: Tensor, kl: Tensor, variance: Tensor) -> dict[str, Tensor]:
        """Return the loss, its two terms, and what recipes are compared by."""
        nll = gaussian_nll(error, variance, self.num_values)
        reconstruction = nll if self.likelihood == "optimal" else error
        return {
            "loss": reconstruction + kl,
            "reconstruction": reconstruction,
            "kl": kl,
            "kl_per_latent": kl / self.latent_dim,
            "sigma": 255 * variance.sqrt(),  # gray levels
            "bits_per_dim": bits_per_dim(nll + kl, self.num_values),
        }


class ConvVAE(VAE):
    """The report's convolutional VAE; the defaults are its recipe.

    Args:
        image_size: height and width of the images, in pixels; a multiple of 4.
        activation: at the end of the decoder.

    Raises:
        ValueError: if ``image_size`` is not a positive multiple of 4, a number is too small, or a name is unknown.
    """

    def __init__(
        self,
        image_size: int,
        latent_dim: int,
        lr: float,
        lr_schedule: Schedule = "constant",
        likelihood: Likelihood = "fixed",
        activation: Activation = "none",
    ) -> None:
        if image_size <= 0 or image_size % 4:
            raise ValueError(
                f"ConvVAE halves images twice and doubles them twice, so their size must be a multiple of 4, "
                f"got {image_size}. Set data.init_args.size to {max(4, round(image_size / 4) * 4)}."
            )
        check_numbers(lr, "latent_dim", latent_dim)
        check_choice("model.init_args.lr_schedule", lr_schedule, Schedule)
        check_choice("model.init_args.likelihood", likelihood, Likelihood)
        check_choice("model.init_args.activation", activation, Activation)
        encoder, decoder = ConvEncoder(image_size, latent_dim), ConvDecoder(image_size, latent_dim, activation)
        super().__init__(encoder, decoder, image_size, latent_dim, lr, lr_schedule, 0, likelihood)
        self.save_hyperparameters()


def check_numbers(lr: float, name: str, number: int) -> None:
    """Raise a ValueError unless both are large enough to train with."""
    if number < 1 or not lr > 0:
        raise ValueError(f"model.init_args: {name} is {number}, must be 1 or more; lr is {lr}, must be over 0.")
