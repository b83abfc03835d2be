"""The configs of a model's parts: reads them, and checks the type and range of every value that is used.

Configs come from anywhere, and what they declare is built, and then run. A key that is not listed here is not
checked, and a missing key has the default of its class. Reads JSON only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdcli.errors import ModelCorrupt, ModelError
from sdcli.models import families
from sdcli.recipe import schedulers

MAX_TRAINED_STEPS = 100_000
_DOWNLOAD_AGAIN = "download the model's folder again"


@dataclass(frozen=True)
class Rule:
    """Which values a key can have, and the words for them after "must be"."""

    words: str
    fits: Callable[[Any], bool]


def _whole(least: int, most: int) -> Rule:
    return Rule(f"a whole number from {least} to {most}", lambda value: type(value) is int and least <= value <= most)


def _number(least: float = -math.inf, most: float = math.inf, words: str = "a finite number") -> Rule:
    return Rule(words, lambda value: _is_number(value) and least <= value <= most)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e30  # larger integers are no floats


def _one_of(*values: Any) -> Rule:
    return Rule(f"one of {', '.join(map(str, values))}", lambda value: type(value) is str and value in values)


def _optional(rule: Rule) -> Rule:
    return Rule(f"{rule.words}, or null", lambda value: value is None or rule.fits(value))


def _list(rule: Rule, most: int = 16) -> Rule:
    return Rule(
        f"a list of 1 to {most}, each {rule.words}",
        lambda value: isinstance(value, list) and 1 <= len(value) <= most and all(map(rule.fits, value)),
    )


def _or_list(rule: Rule) -> Rule:
    """One value, or one for each level of the network."""
    return Rule(f"{rule.words}, or a list of them", lambda value: rule.fits(value) or _list(rule).fits(value))


_TEXT = Rule("a text", lambda value: type(value) is str)
_LIST = Rule("a list", lambda value: isinstance(value, list | tuple))
_FLAG = Rule("true or false", lambda value: value is None or type(value) is bool)
_CHOICE = Rule("true or false", lambda value: type(value) is bool)
_COUNT = _whole(1, 2**16)
_LAYERS = _whole(1, 1024)
_SMALL = _number(1e-30, 1, "a number above 0, up to 1")
_POSITIVE = _number(1e-30, 1e30, "a positive number")

NETWORK: Mapping[str, Rule] = {
    **dict.fromkeys(("in_channels", "latent_channels", "conditioning_channels", "embedding_dim"), _COUNT),
    **dict.fromkeys(("hidden_size", "intermediate_size", "projection_dim"), _COUNT),
    **dict.fromkeys(("out_channels", "norm_num_groups", "vq_embed_dim", "addition_time_embed_dim"), _optional(_COUNT)),
    **dict.fromkeys(("projection_class_embeddings_input_dim", "encoder_hid_dim"), _optional(_COUNT)),
    **dict.fromkeys(("num_class_embeds", "num_embeds_ada_norm", "time_embedding_dim"), _optional(_COUNT)),
    **dict.fromkeys(("num_embeddings", "num_vq_embeddings", "vocab_size"), _whole(1, 2**24)),
    **dict.fromkeys(("num_hidden_layers", "num_layers"), _LAYERS),
    **dict.fromkeys(("cross_attention_dim", "attention_head_dim", "num_attention_heads"), _optional(_or_list(_COUNT))),
    **dict.fromkeys(("block_out_channels", "encoder_block_out_channels"), _list(_COUNT)),
    "decoder_block_out_channels": _optional(_list(_COUNT)),
    **dict.fromkeys(("num_encoder_blocks", "num_decoder_blocks"), _list(_LAYERS)),
    **dict.fromkeys(("down_block_types", "up_block_types"), _list(_TEXT)),
    **dict.fromkeys(("norm_eps", "layer_norm_eps"), _SMALL),
    **dict.fromkeys(("dropout", "attention_dropout"), _number(0, 1, "a number from 0 to 1")),
    **dict.fromkeys(("mid_block_scale_factor", "resnet_out_scale_factor"), _POSITIVE),
    **dict.fromkeys(("latents_mean", "latents_std"), _optional(_list(_number(), 2**10))),
    **dict.fromkeys(("conv_in_kernel", "conv_out_kernel"), _whole(1, 9)),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), _optional(_whole(0, 2**24))),
    **dict.fromkeys(("joint_attention_dim", "pooled_projection_dim", "caption_projection_dim", "cap_feat_dim"), _COUNT),
    **dict.fromkeys(("context_in_dim", "scale_factor_spatial"), _COUNT),
    "decoder_base_dim": _optional(_COUNT),
    **dict.fromkeys(("dim", "base_dim", "z_dim", "d_model", "d_ff", "d_kv", "head_dim", "num_heads"), _COUNT),
    **dict.fromkeys(("n_heads", "n_kv_heads", "num_key_value_heads", "timestep_guidance_channels"), _COUNT),
    **dict.fromkeys(("n_layers", "n_refiner_layers", "num_single_layers", "num_decoder_layers"), _whole(0, 1024)),
    **dict.fromkeys(("axes_dims", "axes_dims_rope", "axes_lens", "dim_mult"), _list(_COUNT)),
    **dict.fromkeys(("all_patch_size", "all_f_patch_size"), _list(_whole(1, 64))),
    **dict.fromkeys(("rope_theta", "t_scale", "mlp_ratio"), _optional(_POSITIVE)),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_epsilon", "batch_norm_eps", "eps"), _SMALL),
    **dict.fromkeys(("relative_attention_num_buckets", "relative_attention_max_distance"), _whole(1, 2**16)),
    **dict.fromkeys(("num_res_blocks", "pos_embed_max_size", "input_channels"), _whole(1, 4096)),
    **dict.fromkeys(
        ("dual_attention_layers",), Rule("a list of layers", lambda value: isinstance(value, list | tuple))
    ),
    **dict.fromkeys(("attn_scales", "temperal_downsample"), Rule("a list", lambda value: isinstance(value, list))),
    "sample_size": _whole(1, 4096),
    "patch_size": _optional(_or_list(_whole(1, 64))),
    "time_cond_proj_dim": _optional(_whole(4, 2**16)),
    "max_position_embeddings": _whole(3, 2**20),
    "layers_per_block": _or_list(_LAYERS),
    "transformer_layers_per_block": _or_list(_or_list(_whole(0, 1024))),
    "conditioning_embedding_out_channels": _optional(_list(_COUNT)),
    "downsample_padding": _whole(0, 8),
    "freq_shift": _whole(0, 1000),
    "only_cross_attention": _or_list(_FLAG),
    "scaling_factor": _optional(_POSITIVE),
    "shift_factor": _optional(_number()),
    **dict.fromkeys(("act_fn", "activation_fn", "hidden_act", "norm_type", "attention_type"), _TEXT),
    **dict.fromkeys(("time_embedding_type", "resnet_time_scale_shift", "upsample_fn"), _TEXT),
    **dict.fromkeys(("mid_block_type", "class_embed_type", "addition_embed_type"), _optional(_TEXT)),
    **dict.fromkeys(("encoder_hid_dim_type", "time_embedding_act_fn", "timestep_post_act"), _optional(_TEXT)),
    **dict.fromkeys(("cross_attention_norm", "_class_name"), _optional(_TEXT)),
    **dict.fromkeys(("center_input_sample", "flip_sin_to_cos", "dual_cross_attention", "upcast_attention"), _FLAG),
    **dict.fromkeys(("use_linear_projection", "resnet_skip_time_act", "class_embeddings_concat"), _FLAG),
    **dict.fromkeys(("mid_block_only_cross_attention", "force_upcast", "use_quant_conv"), _FLAG),
    **dict.fromkeys(("use_post_quant_conv", "mid_block_add_attention", "lookup_from_codebook"), _FLAG),
    **dict.fromkeys(("norm_elementwise_affine", "attention_bias", "global_pool_conditions"), _FLAG),
}
"""The keys of U-Nets, transformers, autoencoders, text encoders, class embedders and ControlNets."""

SCHEDULER: Mapping[str, Rule] = {
    "_class_name": _optional(_TEXT),
    "num_train_timesteps": _whole(10, MAX_TRAINED_STEPS),
    **dict.fromkeys(("beta_start", "beta_end"), _number(1e-12, 0.999, "a number above 0 and below 1")),
    "beta_schedule": _one_of("linear", "scaled_linear", "squaredcos_cap_v2"),
    "trained_betas": _optional(_list(_number(0, 1, "a number from 0 to 1"), MAX_TRAINED_STEPS)),
    "timestep_spacing": _one_of("leading", "linspace", "trailing"),
    "steps_offset": _whole(0, 10),
    "original_inference_steps": _whole(1, 1000),
    "solver_order": _whole(1, 3),
    "final_sigmas_type": _one_of("zero", "sigma_min"),
    "variance_type": _optional(_TEXT),
    "algorithm_type": _one_of("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++", "deis"),
    "solver_type": _one_of("midpoint", "heun", "bh1", "bh2", "logrho"),
    "interpolation_type": _one_of("linear", "log_linear"),
    "prediction_type": _TEXT,
    **dict.fromkeys(("timestep_scaling", "clip_sample_range", "sample_max_value"), _POSITIVE),
    **dict.fromkeys(("sigma_min", "sigma_max"), _optional(_POSITIVE)),
    **dict.fromkeys(("flow_shift", "shift", "shift_terminal"), _optional(_number(0, 1e3, "a number from 0 to 1000"))),
    **dict.fromkeys(("base_shift", "max_shift"), _optional(_number(-100, 100, "a number from -100 to 100"))),
    **dict.fromkeys(("base_image_seq_len", "max_image_seq_len"), _whole(1, 2**24)),
    "time_shift_type": _one_of("exponential", "linear"),
    **dict.fromkeys(("use_dynamic_shifting", "invert_sigmas", "stochastic_sampling"), _FLAG),
    "dynamic_thresholding_ratio": _number(0, 1, "a number from 0 to 1"),
    "lambda_min_clipped": Rule("a number", lambda value: value == -math.inf or _is_number(value)),
    **dict.fromkeys(("clip_sample", "set_alpha_to_one", "skip_prk_steps", "rescale_betas_zero_snr"), _FLAG),
    **dict.fromkeys(("thresholding", "lower_order_final", "euler_at_final", "use_lu_lambdas", "predict_x0"), _FLAG),
    **dict.fromkeys(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_flow_sigmas"), _CHOICE),
}


def read(path: Path, hint_if_missing: str | None = None) -> dict[str, Any]:
    """Read the config of a network, an autoencoder, a text encoder or a ControlNet.

    Raises ModelCorrupt if it is missing, or for a value of a wrong type or out of range.
    """
    config = families.read_json(path) if hint_if_missing is None else families.read_json(path, hint_if_missing)
    check(path, config, NETWORK)
    return config


def read_scheduler(path: Path, class_name: Any = None) -> dict[str, Any]:
    """Read the config of a scheduler: the noise schedule that a model was trained with.

    `class_name` is that of model_index.json, if it has one. A model of flow matching has the `prediction_type` FLOW in
    the result, whatever its class is. Raises ModelCorrupt like `read`, and ModelError for a model that was trained in
    another way than by discrete steps of variance-preserving noise, or by flow matching.
    """
    config = families.read_json(path, "a model's folder has scheduler/scheduler_config.json")
    check(path, config, SCHEDULER)
    names = [name for name in (class_name, config.get("_class_name")) if name is not None]
    if _is_flow(config, names):
        return _flow_config(path, config)
    for name in names:
        if name not in schedulers.CLASSES:
            raise ModelError(f"{path}: the scheduler {name} is not supported", _OTHER)
    for key, value in (("prediction_type", "epsilon"), ("timestep_type", "discrete"), ("use_flow_sigmas", False)):
        allowed = schedulers.PREDICTIONS if key == "prediction_type" else (value, None)
        if config.get(key, value) not in allowed:
            raise ModelError(f"{path}: {key} is {config[key]!r}, which is not supported", _OTHER)
    if "sigma_data" in config:
        raise ModelError(f"{path} is the config of an EDM scheduler, which is not supported", _OTHER)
    betas, steps = config.get("trained_betas"), config.get("num_train_timesteps", 1000)
    if betas is not None and len(betas) != steps:
        raise ModelCorrupt(f"{path} has {len(betas)} trained_betas for {steps} timesteps", _DOWNLOAD_AGAIN)
    return config


def _is_flow(config: Mapping[str, Any], names: Sequence[str]) -> bool:
    if all(name in schedulers.FLOW_CLASSES for name in names):
        return any("FlowMatch" in name for name in names) or config.get("prediction_type") == schedulers.FLOW
    return False


def _flow_config(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config with all keys from which any scheduler for flow matching can be made."""
    for key, value in (("invert_sigmas", False), ("stochastic_sampling", False), ("time_shift_type", "exponential")):
        if config.get(key, value) not in (value, None):
            raise ModelError(f"{path}: {key} is {config[key]!r}, which is not supported", _OTHER)
    shift = config.get("shift") or config.get("flow_shift") or 1.0
    return {**config, "prediction_type": schedulers.FLOW, "use_flow_sigmas": True, "shift": shift, "flow_shift": shift}


_OTHER = "use a model that predicts noise, v, or the flow of flow matching"


def check(path: Path, config: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    """Raise ModelCorrupt for the first value that its rule does not allow."""
    for key, value in config.items():
        rule = rules.get(key)
        if rule is not None and not rule.fits(value):
            shown = repr(value)
            shown = shown if len(shown) <= 60 else f"{shown[:57]}…"
            raise ModelCorrupt(f"{path}: {key} is {shown}, and must be {rule.words}", _DOWNLOAD_AGAIN)


def layers(config: Mapping[str, Any]) -> int:
    """Return about how many layers a network's config declares; each has several tensors."""
    levels = len(config.get("block_out_channels", (0,)))
    per_level = _each(config.get("layers_per_block", 1), levels)
    inside = [_total(each) for each in _each(config.get("transformer_layers_per_block", 1), levels)]
    blocks = sum(a * max(1, b) for a, b in zip(per_level, inside, strict=False)) if levels > 1 else 0
    tiny = sum(sum(config.get(key, ())) for key in ("num_encoder_blocks", "num_decoder_blocks"))
    listed = ("num_hidden_layers", "num_layers", "num_single_layers", "n_layers")
    return int(blocks + tiny + sum(config.get(key, 0) for key in listed))


def _each(value: Any, count: int) -> list[Any]:
    return value if isinstance(value, list) else [value] * count


def _total(value: Any) -> int:
    return sum(value) if isinstance(value, list) else int(value)
