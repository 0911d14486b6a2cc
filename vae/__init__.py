import system.environment  # noqa: F401 - before Lightning
from vae.vae import ConvVAE

__all__ = ["ConvVAE"]
