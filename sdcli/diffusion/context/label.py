"""A class label as context: y is one of the classes that a model was trained with.

Latent diffusion embeds it as the one token of a sequence, for cross-attention (Rombach et al. 2022, §3.3); DiT takes
its number, and shifts and scales its normalised features by it (Peebles & Xie 2023, "Scalable Diffusion Models with
Transformers", §3.2). Knows nothing of class names.
"""

from __future__ import annotations

import torch

from sdcli.diffusion.context import Context
from sdcli.diffusion.model import LatentDiffusionModel


@torch.inference_mode()
def encode(model: LatentDiffusionModel, index: int, *, guidance: bool) -> Context:
    """Encode class `index`, 0 … number of classes − 1, for one picture (B = 1).

    `guidance` adds the unconditional half, which is the class after the last: it replaced a part of the labels in
    training.
    """
    assert model.labels is not None
    index_of_none = len(model.labels.names)
    label, none = (torch.tensor([each], device=model.device) for each in (index, index_of_none))
    if model.class_embedder is None:
        return Context(class_labels=label, negative_class_labels=none if guidance else None)
    embeds, negative_embeds = (model.class_embedder(each[:, None]) for each in (label, none))  # (1, 1, D)
    return Context(prompt_embeds=embeds, negative_prompt_embeds=negative_embeds if guidance else None)
