"""Text-to-image latent diffusion that behaves like a Unix program."""

__version__ = "0.1.0"

# Raised with every release in which the same recipe gives other pixels on the same machine.
NUMERICS_VERSION = 1
