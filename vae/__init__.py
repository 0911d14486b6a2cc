import system.environment  # noqa: F401 - before Lightning
from vae.residual import ResidualVAE
from vae.vae import VAE, ConvVAE

__all__ = ["VAE", "ConvVAE", "ResidualVAE"]
