"""DiT: Peebles & Xie 2023, "Scalable Diffusion Models with Transformers". Makes square pictures of ImageNet's classes.

y is a class, which shifts and scales normalised features (adaLN-Zero, §3.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sdcli.diffusion.facts import Facts
from sdcli.diffusion.guidance import Guidance, guide
from sdcli.diffusion.latent_space import LatentSpace
from sdcli.recipe.cache import FIRST_BLOCK
from sdcli.recipe.checks import check_condition
from sdcli.recipe.parts import Condition

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from torch import Tensor

    from sdcli.diffusion.context import Context
    from sdcli.diffusion.denoise import Denoiser, Evaluation
    from sdcli.diffusion.model import LatentDiffusionModel


def facts(network: Mapping[str, Any], vae: Mapping[str, Any], index: Mapping[str, Any]) -> Facts:
    """Read the configs of a DiT and its VAE. diffusers' class only makes squares."""
    space = LatentSpace.of(vae)
    return Facts(
        native_size=int(network["sample_size"]) * space.vae_scale_factor,
        size_multiple=space.vae_scale_factor * int(network.get("patch_size", 2)),
        in_channels=int(network["in_channels"]),
        latent_space=space,
        cache=FIRST_BLOCK,
        square_only=True,
    )


def activations(network: Mapping[str, Any], latents: int) -> int:
    """What one block keeps: its input, three projections, and the fourfold hidden layer."""
    width = int(network["num_attention_heads"]) * int(network["attention_head_dim"])
    return 10 * width * latents // int(network.get("patch_size", 2)) ** 2


def latent_space(vae: Any) -> LatentSpace:
    """Return the latent space of the VAE's config."""
    return LatentSpace.of(vae.config)


def misfit(model: LatentDiffusionModel) -> str | None:
    """Compare the latents' channels with those of the transformer.

    If the transformer also predicts its variance, it has twice as many output channels.
    """
    config, channels = model.network.config, model.latent_channels
    predicted = config["out_channels"] or config["in_channels"]
    if config["in_channels"] != channels or predicted not in (channels, 2 * channels):
        return "its transformer and its VAE disagree about the latents' channels"
    return None


def encode(
    model: LatentDiffusionModel,
    condition: Condition,
    size: tuple[int, int],
    guidance: Guidance,
    pictures: Sequence[Picture] = (),
) -> Context:
    """Encode a class label."""
    from sdcli.diffusion.context import label

    index = check_condition(model.labels, condition)
    assert index is not None  # a DiT is loaded with its labels
    return label.encode(model, index, guidance=guidance.is_on)


def bind(network: Any, context: Context, guidance: Guidance, batch: int) -> Denoiser:
    """Return f(z, t) with one call of the transformer for both halves of guidance, the unconditional one first.

    If the transformer also predicts its variance, only the noise is returned, because schedulers do not take more.
    """
    import torch

    halves = [context.class_labels]
    guided = guidance.is_on and context.negative_class_labels is not None
    if guided:
        halves.insert(0, context.negative_class_labels)
    class_labels = torch.cat([half.expand(batch) for half in halves if half is not None])

    def denoiser(latents: Tensor, timestep: Tensor, evaluation: Evaluation) -> Tensor:
        sample = latents.to(network.dtype)
        if guided:
            sample = torch.cat([sample, sample])
        timesteps = timestep.expand(len(sample))
        predicted = network(sample, timestep=timesteps, class_labels=class_labels, return_dict=False)[0]
        noise_pred: Tensor = predicted[:, : sample.shape[1]].float()
        return guide(noise_pred, guidance) if guided else noise_pred

    return denoiser


def set_timesteps(scheduler: Any, steps: int, shape: tuple[int, int, int]) -> None:
    """Use the scheduler's own spacing for every size."""
    scheduler.set_timesteps(steps)
