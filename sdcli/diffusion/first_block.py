"""First-block caching of transformers, by the hooks of diffusers.

If the first block changes its input almost as in the last evaluation that was computed as a whole, the change by all
other blocks is taken from there. The method is that of ParaAttention (https://github.com/chengzeyi/ParaAttention).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache
from diffusers.hooks._common import _ALL_TRANSFORMER_BLOCK_IDENTIFIERS as _BLOCKS
from diffusers.hooks.first_block_cache import _FBC_BLOCK_HOOK, _FBC_LEADER_BLOCK_HOOK
from diffusers.hooks.hooks import CacheContext, HookRegistry, _set_cache_context

from sdcli.diffusion.denoise import Denoiser, Evaluation
from sdcli.errors import InvalidRecipe


@contextmanager
def applied(network: Any, threshold: float) -> Iterator[None]:
    """Add the hooks to `network`, and remove them and what they keep. Raises InvalidRecipe for a single block."""
    if sum(len(blocks) for name, blocks in network.named_children() if name in _BLOCKS) < 2:
        what = "cache first-block has no effect: the model's transformer has a single block"
        raise InvalidRecipe(what, "omit it", "cache")
    registry = HookRegistry.check_if_exists_or_initialize(network)
    apply_first_block_cache(network, FirstBlockCacheConfig(threshold=threshold))
    registry.invalidate_child_registries_cache()
    try:
        yield
    finally:
        for name in (_FBC_LEADER_BLOCK_HOOK, _FBC_BLOCK_HOOK):
            registry.remove_hook(name, recurse=True)
        registry.invalidate_child_registries_cache()


class _Named:
    """Calls a network, and tells the hooks which of the calls of an evaluation it is, so that each has its own cache.

    `name` is that of the denoiser, and `calls` is how often the network was called in this evaluation.
    """

    def __init__(self, network: Any, name: str) -> None:
        self.network, self.name, self.calls = network, name, 0
        self.dtype, self.config = network.dtype, network.config

    def __call__(self, *inputs: Any, **arguments: Any) -> Any:
        _set_cache_context(self.network, CacheContext(f"{self.name} {self.calls}"))
        self.calls += 1
        return self.network(*inputs, **arguments)


def bind(network: Any, name: str, bind_network: Callable[[Any], Denoiser]) -> Denoiser:
    """Return the denoiser `name` that `bind_network` makes of a network with hooks."""
    named = _Named(network, name)
    denoiser = bind_network(named)

    def cached(latents: Any, timestep: Any, evaluation: Evaluation) -> Any:
        named.calls = 0
        return denoiser(latents, timestep, evaluation)

    return cached
