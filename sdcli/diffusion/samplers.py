"""Makes diffusers' schedulers from a row of the table and a model's config. Imports diffusers when one is made."""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from sdcli.recipe import schedulers


def make(
    name: str,
    sigmas: str,
    scheduler_config: Mapping[str, Any],
    *,
    noise_seeds: Sequence[int] | None = None,
    shift: float | None = None,
) -> Any:
    """Make a diffusers scheduler for a model's `scheduler_config`; its timesteps are not set yet.

    Uses the same values of the config as the class's `from_config`, which would import every other scheduler. With
    `sigmas` "default" the config decides the spacing. `noise_seeds`, one per picture, are for a scheduler that draws
    its own noise (`brownian`); the others use the generators of each step. `shift` replaces that of the config of a
    model of flow matching. Call `schedulers.check` first.
    """
    row = schedulers.TABLE[name]
    if schedulers.predicts_flow(scheduler_config):
        assert row.flow is not None  # see `schedulers.check`
        kind, own = _flow_class_of(row.flow), row.flow.options
        if shift is not None:
            fixed = {"shift": shift, "flow_shift": shift, "use_dynamic_shifting": False}
            scheduler_config = {**scheduler_config, **fixed}
    else:
        kind, own = _class_of(row), row.options
    accepted = set(inspect.signature(kind).parameters)
    defaulted = scheduler_config.get("_use_default_values", ())
    options = {key: value for key, value in scheduler_config.items() if key in accepted and key not in defaulted}
    options.update(own)
    if sigmas != "default":
        options.update({f"use_{each}_sigmas": each == sigmas for each in schedulers.SIGMAS[1:]})
    if scheduler_config.get("rescale_betas_zero_snr") and not row.zero_snr:
        options["trained_betas"] = _zero_snr_betas(scheduler_config)
    if row.brownian and noise_seeds is not None:
        options["noise_sampler_seed"] = list(noise_seeds)
    return kind(**options)


def _zero_snr_betas(scheduler_config: Mapping[str, Any]) -> list[float]:
    """Return betas with zero terminal SNR, from a scheduler that can rescale them.

    The last ᾱ is 2⁻²⁴ instead of 0, so that every noise level is finite.
    """
    alphas_cumprod = make("euler", "default", scheduler_config).alphas_cumprod.double().tolist()
    before = [1.0, *alphas_cumprod[:-1]]
    return [1 - after / each for each, after in zip(before, alphas_cumprod, strict=True)]


def _flow_class_of(flow: schedulers.Flow) -> Any:
    from sdcli.diffusion.flow import with_common_names

    module = importlib.import_module(f"diffusers.schedulers.scheduling_{flow.module}")
    return with_common_names(getattr(module, flow.class_name))


def _class_of(row: schedulers.Row) -> Any:
    module = importlib.import_module(f"diffusers.schedulers.scheduling_{row.module}")
    kind = getattr(module, row.class_name)
    if row.midway is not None:
        from sdcli.diffusion import midway  # imports torch

        kind = getattr(midway, row.midway)(kind)
    return _noise_on_cpu(kind, module.BrownianTreeNoiseSampler) if row.brownian else kind


def _noise_on_cpu(kind: Any, noise_sampler: Any) -> Any:
    """Return a subclass of `kind` that draws its Brownian motion on the CPU, so that it is the same on every device."""

    class OnCpu(kind):  # type: ignore[misc]
        def step(self, model_output: Any, timestep: Any, sample: Any, **options: Any) -> Any:
            if self.noise_sampler is None:
                low, high = self.sigmas[self.sigmas > 0].min().item(), self.sigmas.max().item()
                like = sample.new_empty(sample.shape, device="cpu")  # only its shape and dtype are used
                path = noise_sampler(like, low, high, self.noise_sampler_seed)

                def noise(sigma: Any, sigma_next: Any) -> Any:
                    with warnings.catch_warnings():  # torchsde warns that it rounds the ends of the path
                        warnings.filterwarnings("ignore", "Should have t[ab]", UserWarning)
                        return path(sigma, sigma_next).to(sample.device)

                self.noise_sampler: Any = noise
            return super().step(model_output, timestep, sample, **options)

    return OnCpu
