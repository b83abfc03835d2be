"""y, the context of f(z, t, y), after encoding. One module beside this for each kind of y."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from sdcli.diffusion.denoise import Evaluation

Residuals = Callable[["Tensor", "Tensor", Mapping[str, Any], "Evaluation", bool], Mapping[str, Any]]
"""What is added inside the U-Net in one evaluation, as keyword arguments for it, which may be none.

Takes the latents as the U-Net gets them (B, C, h, w), without concatenated channels; the timestep; the U-Net's
other keyword arguments; which evaluation it is, and whether an unconditional half comes first in it.
"""


@dataclass(frozen=True)
class Context:
    """y, encoded, for a batch of B pictures; one picture stands for all of a batch.

    By cross-attention: `prompt_embeds` (B, L, D) and, where guidance needs the unconditional half,
    `negative_prompt_embeds` (B, L, D), of the same L. SDXL's U-Net takes besides the pooled embeddings (B, P) and
    `add_time_ids` (B, 6). By adaptive norms: `class_labels` (B,) of whole numbers, and `negative_class_labels`. By
    concatenation: `concat_latents` (B, C, h, w), set beside the latents in every call. `timestep_cond` (B, E) is the
    embedded guidance scale of a guidance-distilled U-Net (LCM). `residuals` are what ControlNets make of the latents
    and of the pictures they read.
    """

    prompt_embeds: Tensor | None = None
    negative_prompt_embeds: Tensor | None = None
    class_labels: Tensor | None = None
    negative_class_labels: Tensor | None = None
    pooled_prompt_embeds: Tensor | None = None
    negative_pooled_prompt_embeds: Tensor | None = None
    add_time_ids: Tensor | None = None
    concat_latents: Tensor | None = None
    timestep_cond: Tensor | None = None
    residuals: Residuals | None = None

    @property
    def has_unconditional(self) -> bool:
        """Whether there is an unconditional half, to guide away from."""
        return self.negative_prompt_embeds is not None or self.negative_class_labels is not None
