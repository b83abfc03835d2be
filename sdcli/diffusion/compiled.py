"""Compiling a network with torch.compile. Knows nothing of what it computes."""

from __future__ import annotations

import os
import warnings

from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.errors import InvalidRecipe
from sdcli.files.user_files import cache_folder
from sdcli.recipe.recipe import Recipe

_CACHE = "TORCHINDUCTOR_CACHE_DIR"


def prepare(model: LatentDiffusionModel, recipe: Recipe) -> LatentDiffusionModel:
    """Have the network of `model` compiled at its first call with each shape, if the recipe has `compile`.

    The compiled code is kept in the user's cache, where later processes find it. Returns `model`. Raises InvalidRecipe
    if there is no C++ compiler.
    """
    if recipe.execution.compile and not any(each.is_meta for each in model.network.parameters()):
        os.environ.setdefault(_CACHE, str(cache_folder() / "compiled"))
        _check_compiler()
        warnings.filterwarnings("ignore", "Dynamo detected a call to", UserWarning)  # of caches in diffusers
        model.network.compile(dynamic=False)
    return model


def _check_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        hint = "install one, such as g++, or omit --compile"
        raise InvalidRecipe("--compile needs a C++ compiler, and there is none", hint, "compile") from error
