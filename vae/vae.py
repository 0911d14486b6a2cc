"""How the ConvVAE learns, and what it can do once it has."""

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Adam
from torchmetrics import Metric, MetricCollection
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from evaluation import evaluating, exact_float32, log_means
from vae.elbo import kl_divergence, squared_error
from vae.networks import ConvDecoder, ConvEncoder

LOG_VARIANCE_RANGE = (-30.0, 20.0)  # exp stays finite in float32 and far from any variance that is of use


class ConvVAE(LightningModule):
    """Convolutional variational autoencoder for square RGB images in [0, 1].

    While training, the decoder sees a draw from the posterior; in validation and test its mean,
    so that these are repeatable. ``loss = reconstruction + kl``, each the mean over the images of
    a batch of the sum over an image's pixels or latents.

    Args:
        image_size: height and width of the images, in pixels; a multiple of 4.
        latent_dim: number of latents.
        lr: learning rate of Adam, constant through training.

    Raises:
        ValueError: if ``image_size`` is not a positive multiple of 4, or another number is not positive.
    """

    def __init__(self, image_size: int, latent_dim: int, lr: float) -> None:
        super().__init__()
        if image_size <= 0 or image_size % 4:
            raise ValueError(
                f"ConvVAE halves images twice and doubles them twice, so their size must be a multiple of 4, "
                f"got {image_size}. Set data.init_args.size to {max(4, round(image_size / 4) * 4)}."
            )
        if latent_dim < 1 or not lr > 0:
            raise ValueError(f"model.init_args: latent_dim is {latent_dim}, needs 1 or more; lr is {lr}, needs over 0.")
        self.save_hyperparameters()
        self.image_size, self.latent_dim, self.lr = image_size, latent_dim, lr
        self.encoder = ConvEncoder(image_size, latent_dim)
        self.decoder = ConvDecoder(image_size, latent_dim)
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
        return self.decoder(latents).float().clamp(0, 1)

    def reconstruct(self, images: Tensor) -> Tensor:
        """Decode the posterior's mean: images (B, 3, S, S) in [0, 1] to images alike, as in evaluation."""
        with evaluating(self):
            return self.decode(self.encode(images)[0])

    def sample(self, num_images: int, seed: int) -> Tensor:
        """Decode draws from the prior: new images (num_images, 3, S, S) in [0, 1], the same for the same seed."""
        # drawn on the CPU, so that a seed gives the same latents on every device
        latents = torch.randn(num_images, self.latent_dim, generator=torch.Generator().manual_seed(seed))
        with evaluating(self):
            return self.decode(latents.to(self.device))

    def training_step(self, images: Tensor, batch_idx: int) -> Tensor:
        mean, log_variance = self.encode(images)
        latents = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        loss = self._log_loss("train", images, self.decoder(latents), mean, log_variance)
        self.log("train/loss_step", loss, prog_bar=True)
        return loss

    def validation_step(self, images: Tensor, batch_idx: int) -> None:
        self._evaluate("val", images)

    def test_step(self, images: Tensor, batch_idx: int) -> None:
        reconstruction = self._evaluate("test", images).float().clamp(0, 1)
        with exact_float32(images.device.type):  # SSIM subtracts squares that nearly agree
            self.quality.update(reconstruction, images)
        self.log_dict(self.quality)

    def predict_step(self, images: Tensor, batch_idx: int) -> Tensor:
        return self.reconstruct(images)

    def configure_optimizers(self) -> Adam:
        # fused takes a seventh of the time on a CPU, but Lightning cannot clip its gradients under mixed precision
        return Adam(self.parameters(), lr=self.lr, fused=self.trainer.gradient_clip_val is None)

    def _evaluate(self, stage: str, images: Tensor) -> Tensor:
        """Log the loss for the posterior's mean, and return its decoding."""
        mean, log_variance = self.encode(images)
        reconstruction = self.decoder(mean)
        self._log_loss(stage, images, reconstruction, mean, log_variance)
        return reconstruction

    def _log_loss(
        self, stage: str, images: Tensor, reconstruction: Tensor, mean: Tensor, log_variance: Tensor
    ) -> Tensor:
        error, kl = squared_error(reconstruction, images).mean(), kl_divergence(mean, log_variance).mean()
        loss = error + kl
        terms = {"loss": loss, "reconstruction": error, "kl": kl}
        log_means(self, {f"{stage}/{name}": value for name, value in terms.items()}, len(images))
        return loss
