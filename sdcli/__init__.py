"""Text-to-image latent diffusion that behaves like a Unix program."""

__version__ = "0.1.0"
