"""Text-to-image latent diffusion that behaves like a Unix program. A package imports those below it, never one above.

cli.py      the command line: the commands, and exit statuses
commands/   one file per command, and the options they share
serving/    the warm process           jobs/  batches of jobs           training/  training models
bench/      measuring speed, also against diffusers
making/     from a request to pictures on disk, in this process or in the warm one; sheets of pictures; explaining one
planning/   from options to a complete recipe, warnings, dry runs, replaying
models/     models on this machine: names, paths, facts, digests, the hub, loading, exporting
config.py   the user's settings
diffusion/  THE METHOD: the context y, noise, the denoising loop, the autoencoder
files/      pictures, maps, latents and metadata as files, written completely or not at all
recipe/     everything that determines a picture, and its validation
terminal/   the standard streams, a progress bar
errors.py   the errors, each with a message, a hint and an exit status
kit/        the embedded model

The names in `__all__` are the Python API (docs/python.md). They are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdcli.errors import (
        InputError,
        InvalidPicture,
        InvalidRecipe,
        ModelCorrupt,
        ModelError,
        ModelNotFound,
        ModelUnsafe,
        OutOfMemory,
        OutputError,
        OutputExists,
        SdcliError,
        UsageError,
    )
    from sdcli.making.api import Model, Options, generate, load, read_recipe
    from sdcli.making.picture import Picture
    from sdcli.recipe.recipe import Recipe

__version__ = "0.1.0"

# Raised with every release in which the same recipe gives other pixels on the same machine.
NUMERICS_VERSION = 1

_MODULES = {
    "sdcli.making.api": ("Model", "Options", "generate", "load", "read_recipe"),
    "sdcli.making.picture": ("Picture",),
    "sdcli.recipe.recipe": ("Recipe",),
}
_ERRORS = "sdcli.errors"

__all__ = [
    "InputError",
    "InvalidPicture",
    "InvalidRecipe",
    "Model",
    "ModelCorrupt",
    "ModelError",
    "ModelNotFound",
    "ModelUnsafe",
    "Options",
    "OutOfMemory",
    "OutputError",
    "OutputExists",
    "Picture",
    "Recipe",
    "SdcliError",
    "UsageError",
    "__version__",
    "generate",
    "load",
    "read_recipe",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = next((module for module, names in _MODULES.items() if name in names), _ERRORS)
    return getattr(import_module(module), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
