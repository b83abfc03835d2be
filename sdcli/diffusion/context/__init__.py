"""y, the context of f(z, t, y), after encoding. This package has one module for each kind of y."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sdcli.diffusion.denoise import Evaluation

Residuals = Callable[["Tensor", "Tensor", Mapping[str, Any], "Evaluation", bool], Mapping[str, Any]]
"""Returns the keyword arguments that add residuals inside the U-Net in one evaluation; they can be empty.

Takes the latents as the U-Net gets them (B, C, h, w), without concatenated channels; the timestep; the U-Net's other
keyword arguments; the evaluation; and whether the batch starts with an unconditional half.
"""


@dataclass(frozen=True)
class Context:
    """y, encoded, for a batch of B pictures; a context with B = 1 is used for every picture of a batch.

    For cross-attention: `prompt_embeds` (B, L, D) and, if guidance needs the unconditional half,
    `negative_prompt_embeds` (B, L, D) with the same L. SDXL's U-Net also takes pooled embeddings (B, P) and
    `add_time_ids` (B, 6). `prompt_mask` (B, L) and `negative_prompt_mask` are for transformers that take padding. For
    adaptive norms: `class_labels` (B,), integers, and `negative_class_labels`. For concatenation: `concat_latents`
    (B, C, h, w), appended to the latents in every call. `timestep_cond` (B, E) is the embedded guidance scale of a
    guidance-distilled U-Net (LCM). `residuals` computes the residuals of ControlNets from the latents and their images.
    """

    prompt_embeds: Tensor | None = None
    negative_prompt_embeds: Tensor | None = None
    prompt_mask: Tensor | None = None
    negative_prompt_mask: Tensor | None = None
    class_labels: Tensor | None = None
    negative_class_labels: Tensor | None = None
    pooled_prompt_embeds: Tensor | None = None
    negative_pooled_prompt_embeds: Tensor | None = None
    add_time_ids: Tensor | None = None
    negative_add_time_ids: Tensor | None = None
    """Those of the unconditional half, if they differ (SDXL's refiner)."""
    concat_latents: Tensor | None = None
    timestep_cond: Tensor | None = None
    residuals: Residuals | None = None
    reference_latents: tuple[Tensor, ...] = ()
    """The latents (1, C, h, w) of each reference image, normalised, which the transformer takes as further tokens."""
    refined: Context | None = None
    """The context of the refiner."""
    image_embeds: tuple[Tensor, ...] = ()
    """Encoded images that are prompts, (1, 1, …) each, for the IP-Adapter in the U-Net."""
    negative_image_embeds: tuple[Tensor, ...] = ()
    notes: tuple[str, ...] = ()
    """Warnings about what was encoded, which belong to the picture."""

    @property
    def conditional(self) -> Self:
        """The same context without its unconditional half."""
        return replace(
            self,
            negative_prompt_embeds=None,
            negative_prompt_mask=None,
            negative_class_labels=None,
            negative_pooled_prompt_embeds=None,
        )

    @property
    def has_unconditional(self) -> bool:
        """Whether there is an unconditional half, which guidance needs."""
        return self.negative_prompt_embeds is not None or self.negative_class_labels is not None

    def halves(self, batch: int, dtype: torch.dtype) -> list[Tensor]:
        """Return the embeddings of each half for `batch` pictures; those of the unconditional one first, if any."""
        both = (self.negative_prompt_embeds, self.prompt_embeds)
        return [half.expand(batch, *half.shape[1:]).to(dtype) for half in both if half is not None]
