"""Whether the parts of a model with a transformer fit each other, and if not, how: for `misfit` of architectures."""

from __future__ import annotations


def of_text(gives: int, takes: int) -> str | None:
    """Compare the features per token of the text encoder with those that the transformer takes."""
    if gives == takes:
        return None
    return f"its text encoder gives {gives} features per token, its transformer takes {takes}"


def of_latents(gives: int, takes: int) -> str | None:
    """Compare the channels of the VAE's latents, as the transformer gets them, with those that it takes."""
    return None if gives == takes else "its transformer and its VAE disagree about the latents' channels"
