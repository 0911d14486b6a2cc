from vae.vae import ConvVAE

__all__ = ["ConvVAE"]
