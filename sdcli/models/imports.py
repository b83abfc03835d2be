"""Importing what is used of the large libraries, and not the rest. Imports nothing of sdcli, nor them.

`import diffusers.models.unets.unet_2d_condition` runs the `__init__` of every package on the way, and these import
all of diffusers' networks. Measured figures are in docs/imports.md.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

DEFERRED = (
    "diffusers.hooks",
    "diffusers.models.autoencoders",
    "diffusers.models.controlnets",
    "diffusers.models.transformers",
    "diffusers.models.unets",
    "scipy.stats",  # imported by every multistep scheduler, used by beta sigmas alone
)
"""Packages that are imported for one module inside, or for nothing: their own code waits until it is asked for."""


@contextmanager
def lean_imports() -> Iterator[None]:
    """Import inside this block at less cost, and to the same effect.

    The packages of DEFERRED run their `__init__` only when something that it defines is asked for. The garbage
    collector, which finds next to nothing in fresh modules and looks at all of them again and again, rests.
    """
    collecting = gc.isenabled()
    finder = _DeferringFinder()
    gc.disable()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        if collecting:
            gc.freeze()
            gc.enable()


class _DeferringFinder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in DEFERRED:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _DeferringLoader(spec.loader)
        return spec


class _DeferringLoader(Loader):
    """Gives a package its place and its path at once, so that modules inside can be imported, and its code later.

    importlib.util.LazyLoader does not serve: it takes the import of a module inside for a use of the package.
    """

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        def on_first_use(name: str) -> Any:  # PEP 562
            if name.startswith("__") and name != "__all__":
                raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
            if vars(module).pop("__getattr__", None) is not None:
                self.loader.exec_module(module)
            return getattr(module, name)

        vars(module)["__getattr__"] = on_first_use
