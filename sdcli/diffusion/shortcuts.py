"""Ways to compute less that change the picture: what a recipe asks for, applied to a network while it samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from sdcli.diffusion import deepcache, token_merging
from sdcli.diffusion.denoise import Denoiser
from sdcli.diffusion.facts import Facts
from sdcli.recipe.cache import DEEPCACHE
from sdcli.recipe.parts import Shortcuts

BindNetwork = Callable[[Any], Denoiser]
"""From a network, or what is called like it, to f(z, t)."""
Bind = Callable[[str, BindNetwork], Denoiser]
"""From the name of a denoiser, unlike that of others of the same picture, and how it calls the network."""


@contextmanager
def applied(network: Any, facts: Facts, asked: Shortcuts, size: Sequence[int]) -> Iterator[Bind]:
    """Apply what is `asked` to `network` for latents of `size` (h, w), and yield how its denoisers are bound.

    What does not work with the network, by its `facts`, has no effect.
    """
    cache = asked.cached
    if cache is not None and cache.method != facts.cache:
        cache = None
    merging = token_merging.Merging(asked.token_merging)

    def bind(name: str, bind_network: BindNetwork) -> Denoiser:
        if cache is None:
            return merging.bind(bind_network(network))
        if cache.method == DEEPCACHE:
            return merging.bind(deepcache.bind(network, cache, bind_network))
        from sdcli.diffusion import first_block

        return first_block.bind(network, name, bind_network)

    with ExitStack() as stack:
        if asked.token_merging and facts.merges_tokens:
            stack.enter_context(token_merging.applied(network, merging, (size[0], size[1])))
        if cache is not None and cache.method != DEEPCACHE:
            from sdcli.diffusion import first_block

            stack.enter_context(first_block.applied(network, cache.value))
        yield bind
