"""U-Nets: Stable Diffusion 1.x, 2.x, XL and their distilled versions, and latent diffusion of ImageNet.

y enters by cross-attention (text, or a class as one token), and for SDXL with the time embedding; by concatenation
(masked images, segmentation maps); and as residuals (ControlNets). Rombach et al. 2022, §3.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from sdcli.diffusion.facts import Facts, Prompts
from sdcli.diffusion.guidance import Guidance, guide
from sdcli.diffusion.latent_space import LatentSpace
from sdcli.recipe.cache import DEEPCACHE
from sdcli.recipe.checks import check_condition
from sdcli.recipe.parts import Condition

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image as Picture
    from torch import Tensor

    from sdcli.diffusion.context import Context
    from sdcli.diffusion.denoise import Denoiser, Evaluation
    from sdcli.diffusion.model import LatentDiffusionModel


def facts(network: Mapping[str, Any], vae: Mapping[str, Any], index: Mapping[str, Any]) -> Facts:
    """Read the configs of a U-Net and its VAE."""
    space = LatentSpace.of(vae)
    return Facts(
        native_size=int(network["sample_size"]) * space.vae_scale_factor,
        size_multiple=space.vae_scale_factor,
        in_channels=int(network["in_channels"]),
        latent_space=space,
        cache=DEEPCACHE,
        merges_tokens=any("CrossAttn" in str(each) for each in network.get("down_block_types", ("CrossAttn",))),
        guidance_distilled=network.get("time_cond_proj_dim") is not None,
        knows_sizes=network.get("addition_embed_type") == "text_time",
        takes_aesthetics=bool(index.get("requires_aesthetics_score", False)),
        takes_controlnets=True,
        prompts=Prompts(second=network.get("addition_embed_type") == "text_time"),
    )


def activations(network: Mapping[str, Any], latents: int) -> int:
    """The skip connections of each level, which wait, and the largest block's own tensors.

    How many of these live at once was measured with kit at 256 and 512 pixels.
    """
    layers, channels = network.get("layers_per_block", 2), network["block_out_channels"]
    widths: list[int] = [int(width) * latents // 4**level for level, width in enumerate(channels)]
    counts = layers if isinstance(layers, list | tuple) else [layers] * len(channels)
    skipped = sum((int(count) + 1) * width for count, width in zip(counts, widths, strict=True))
    return skipped + 10 * max(widths)


def latent_space(vae: Any) -> LatentSpace:
    """Return the latent space of the VAE's config."""
    return LatentSpace.of(vae.config)


def misfit(model: LatentDiffusionModel) -> str | None:
    """Compare the encoders' widths and the latents' channels with those of the U-Net."""
    config = model.network.config
    width = sum(encoder.model.config.hidden_size for encoder in model.text_encoders)
    width += model.class_embedder.embedding_dim if model.class_embedder is not None else 0
    takes = config["cross_attention_dim"]
    if config["encoder_hid_dim"] is None and takes != (width or None):
        what = "text encoders give" if model.text_encoders else "class embedder gives"
        return f"its {what} {width} features per token, its U-Net takes {takes}"
    if config["out_channels"] != model.latent_channels or model.concat_channels < 0:
        return "its U-Net and its VAE disagree about the latents' channels"
    return None


def encode(
    model: LatentDiffusionModel,
    condition: Condition,
    size: tuple[int, int],
    guidance: Guidance,
    pictures: Sequence[Picture] = (),
) -> Context:
    """Encode a class label or a text, depending on the model."""
    from sdcli.diffusion.context import label, text

    index = check_condition(model.labels, condition)
    if index is not None:
        return label.encode(model, index, guidance=guidance.is_on)
    return text.encode(
        model,
        condition.prompt,
        condition.negative_prompt,
        guidance=guidance.is_on,
        prompt_2=condition.prompt_2,
        clip_skip=condition.clip_skip,
        prompt_weights=condition.prompt_weights,
        width=size[0],
        height=size[1],
        guidance_scale=guidance.scale,
    )


def bind(network: Any, context: Context, guidance: Guidance, batch: int) -> Denoiser:
    """Return f(z, t) with one call of the U-Net in its dtype for both halves of guidance, the unconditional one first.

    There is no unconditional half if the context has none, or if the U-Net embeds its guidance scale (`timestep_cond`).
    Concatenated channels and residuals are the same in both halves, and so are time embeddings, except those of SDXL.
    Layers before the context are then computed for one half. Their last bits change, so float32 is left as it is.
    """
    import torch

    from sdcli.diffusion import halves

    guided = guidance.is_on and context.has_unconditional and context.timestep_cond is None
    conditions, concat_latents = _inputs(context, batch, guided, network.dtype)
    are_alike = guided and context.pooled_prompt_embeds is None and network.dtype != torch.float32

    def denoiser(latents: Tensor, timestep: Tensor, evaluation: Evaluation) -> Tensor:
        sample = latents.to(network.dtype)
        if guided:
            sample = torch.cat([sample, sample])
        residuals: Mapping[str, Any] = {}
        if context.residuals is not None:
            residuals = context.residuals(sample, timestep, conditions, evaluation, guided)
        if concat_latents is not None:
            sample = torch.cat([sample, concat_latents], dim=1)
        with halves.computed_once(getattr(network, "network", network)) if are_alike else nullcontext():
            noise_pred: Tensor = network(sample, timestep, **conditions, **residuals, return_dict=False)[0].float()
        return guide(noise_pred, guidance) if guided else noise_pred

    return denoiser


def _inputs(context: Context, batch: int, guided: bool, dtype: torch.dtype) -> tuple[dict[str, Any], Tensor | None]:
    """Return the U-Net's keyword arguments and the concatenated channels, which are the same for all evaluations."""
    import torch

    def both(conditional: Tensor | None, unconditional: Tensor | None, dtype: torch.dtype = dtype) -> Tensor | None:
        if conditional is None:
            return None
        halves = [unconditional, conditional] if guided and unconditional is not None else [conditional]
        return torch.cat([half.expand(batch, *half.shape[1:]) for half in halves]).to(dtype)

    conditions: dict[str, Any] = {
        "encoder_hidden_states": both(context.prompt_embeds, context.negative_prompt_embeds),
        "timestep_cond": both(context.timestep_cond, None),
    }
    conditions = {key: value for key, value in conditions.items() if value is not None}
    negative_ids = context.add_time_ids if context.negative_add_time_ids is None else context.negative_add_time_ids
    if context.pooled_prompt_embeds is not None:
        conditions["added_cond_kwargs"] = {
            "text_embeds": both(context.pooled_prompt_embeds, context.negative_pooled_prompt_embeds),
            "time_ids": both(context.add_time_ids, negative_ids, torch.float32),
        }
    if context.image_embeds:
        pairs = zip(context.image_embeds, context.negative_image_embeds, strict=True)
        images = [both(image, none) for image, none in pairs]
        conditions["added_cond_kwargs"] = {**conditions.get("added_cond_kwargs", {}), "image_embeds": images}
    return conditions, both(context.concat_latents, context.concat_latents)


def set_timesteps(scheduler: Any, steps: int, shape: tuple[int, int, int]) -> None:
    """Use the scheduler's own spacing for every size."""
    scheduler.set_timesteps(steps)
