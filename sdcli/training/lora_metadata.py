"""The metadata of a LoRA's file, in the keys of kohya-ss/sd-scripts and of the ModelSpec, which other tools show.

The same run gives the same metadata: there are no times in it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from sdcli import __version__
from sdcli.models.located import LocatedModel
from sdcli.training.run_config import RunConfig
from sdcli.training.settings import LoraTraining

VERSIONS = {768: ("sd_v1", "stable-diffusion-v1"), 1024: ("sd_v2", "stable-diffusion-v2")}
"""ss_base_model_version, and the architecture in the ModelSpec, by the features of a token."""
XL_VERSION = ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base")


def metadata(
    config: RunConfig, found: LocatedModel, name: str, texts: Sequence[str], class_pictures: int
) -> dict[str, str]:
    """Return the metadata of a LoRA called `name` for a model, trained on pictures with these texts."""
    settings, begin = config.settings, config.begin
    assert isinstance(settings, LoraTraining)
    assert begin.data is not None
    facts, network = found.facts, found.denoiser_config
    own = (found.entry.name, found.entry.name)
    known = VERSIONS.get(int(network["cross_attention_dim"]), own)
    version, architecture = XL_VERSION if facts.knows_sizes else known
    prediction = str(facts.scheduler_config.get("prediction_type", "epsilon"))
    if prediction == "v_prediction" and version == "sd_v2":
        version, architecture = "sd_v2_v", "stable-diffusion-v2-768-v"
    side, folder = begin.size or facts.native_size, Path(begin.data).name
    trained = f"{settings.lr:g}"
    arguments = {}
    if settings.conv_rank:
        arguments = {"conv_dim": settings.conv_rank, "conv_alpha": settings.alpha * settings.conv_rank / settings.rank}
    values: Mapping[str, object] = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": settings.rank,
        "ss_network_alpha": settings.alpha,
        **({"ss_network_args": json.dumps({key: str(each) for key, each in arguments.items()})} if arguments else {}),
        "ss_base_model_version": version,
        "ss_v2": version.startswith("sd_v2"),
        "ss_sd_model_name": found.entry.name,
        "ss_output_name": name,
        "ss_learning_rate": trained,
        "ss_unet_lr": trained,
        "ss_text_encoder_lr": trained if begin.text else None,
        "ss_optimizer": "torch.optim.adamw.AdamW(weight_decay=0.01,betas=(0.9, 0.99))",
        "ss_lr_scheduler": "linear",
        "ss_lr_warmup_steps": settings.warmup,
        "ss_max_train_steps": settings.steps,
        "ss_steps": settings.steps,
        "ss_total_batch_size": settings.batch,
        "ss_num_train_images": len(texts),
        "ss_num_reg_images": class_pictures,
        "ss_prior_loss_weight": settings.prior_weight,
        "ss_resolution": f"({side}, {side})",
        "ss_enable_bucket": True,
        "ss_seed": settings.seed,
        "ss_gradient_checkpointing": begin.gradient_checkpointing,
        "ss_dataset_dirs": json.dumps({folder: {"n_repeats": 1, "img_count": len(texts)}}),
        "ss_tag_frequency": json.dumps({folder: tags(texts)}, ensure_ascii=False),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": name,
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.prediction_type": "v" if prediction == "v_prediction" else prediction,
        "sdcli_version": __version__,
    }
    return {key: str(value) for key, value in values.items()}


def tags(texts: Sequence[str]) -> dict[str, int]:
    """Return how often each tag, the parts of texts between commas, is there; the most frequent first."""
    return dict(Counter(tag for text in texts for each in text.split(",") if (tag := each.strip())).most_common())
