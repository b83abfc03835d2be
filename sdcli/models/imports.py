"""Imports only the used parts of the large libraries. Imports nothing of sdcli.

`import diffusers.models.unets.unet_2d_condition` runs the `__init__` of every package above it, and these import all
of diffusers' networks. docs/imports.md has measurements.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, MutableSequence, Sequence
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
    "scipy.stats",  # imported by every multistep scheduler, used only by beta sigmas
)
"""Packages whose `__init__` runs only when one of its names is used."""


@contextmanager
def lean_imports() -> Iterator[None]:
    """Make imports inside this block faster, with the same result.

    The packages of DEFERRED run their `__init__` only when one of its names is used. The garbage collector, which would
    repeatedly traverse the new modules and find almost nothing, is paused.
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
    """Makes a package available immediately, so that its submodules can be imported, and runs its code later.

    importlib.util.LazyLoader cannot be used: importing a submodule would run the package's code.
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


@contextmanager
def stand_ins(*names: str) -> Iterator[None]:
    """Let imports inside this block find empty modules of these `names`, for code that is not run.

    Modules that are already imported stay as they are.
    """
    ours = {name: _Empty(name) for name in names if name not in sys.modules}
    sys.modules.update(ours)
    try:
        yield
    finally:
        for name in ours:
            sys.modules.pop(name, None)


class _Empty(ModuleType):
    __path__: MutableSequence[str] = []  # noqa: RUF012  that of a package without modules

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
