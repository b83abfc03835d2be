"""Compiling a network with torch.compile. Knows nothing of what it computes."""

from __future__ import annotations

import os
import warnings

from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.errors import InvalidRecipe
from sdcli.files.user_files import cache_folder
from sdcli.recipe.recipe import Recipe

_CACHE = "TORCHINDUCTOR_CACHE_DIR"
_MOST_SHAPES = 256
"""A network is compiled for so many sizes of pictures, batches and prompts in one process."""


def prepare(model: LatentDiffusionModel, recipe: Recipe) -> LatentDiffusionModel:
    """Have the network of `model`, and that of a refiner, compiled at their first calls, if the recipe has `compile`.

    The compiled code is kept in the user's cache, where later processes find it. Returns `model`. Raises InvalidRecipe
    if there is no C++ compiler, or if the weights of layers wait in main memory, which compiled code cannot move.
    """
    if not recipe.execution.compile or any(each.is_meta for each in model.network.parameters()):
        return model
    import torch._dynamo

    if model.offload == "group":
        what = "--compile cannot be combined with loading the network layer by layer"
        raise InvalidRecipe(what, "omit --compile, or use --memory high", "compile")
    _check_compiler()
    os.environ.setdefault(_CACHE, str(cache_folder() / "compiled"))
    warnings.filterwarnings("ignore", "Dynamo detected a call to", UserWarning)  # of caches in diffusers
    warnings.filterwarnings("ignore", ".*torch.jit", DeprecationWarning)  # which the compiler imports
    # beyond these limits torch would run the network as it is, and the recipe would be wrong
    torch._dynamo.config.recompile_limit = _MOST_SHAPES
    torch._dynamo.config.accumulated_recompile_limit = 4 * _MOST_SHAPES
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    for each in filter(None, (model, model.refiner)):
        each.network.compile(dynamic=False)
    return model


def _check_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        hint = "install one, such as g++, or omit --compile"
        raise InvalidRecipe("--compile needs a C++ compiler, and there is none", hint, "compile") from error
