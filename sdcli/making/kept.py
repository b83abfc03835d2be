"""A loaded model with the contexts that its text encoders gave, which may have been dropped since.

Where text encoders and network do not fit into memory together (a `staged` plan), the text encoders are loaded first,
encode all prompts that are known, and are dropped before the network is loaded.
"""

from __future__ import annotations

import traceback
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from sdcli.errors import InvalidRecipe, ModelCorrupt, SdcliError
from sdcli.files.inputs import NO_INPUTS, Inputs
from sdcli.models.source import Source
from sdcli.models.weights import Weights
from sdcli.planning.memory import MemoryPlan
from sdcli.recipe.recipe import Recipe
from sdcli.terminal.printable import one_line

if TYPE_CHECKING:
    from sdcli.diffusion.context import Context
    from sdcli.diffusion.model import LatentDiffusionModel

MOST_CONTEXTS = 128
"""So many contexts are kept with a model; one takes some MiB."""

Contexts = dict[Hashable, list["Context"]]
"""The contexts of recipes, by what they depend on (see `pipeline.encoded_by`), the least recently used first."""


@dataclass
class Kept:
    """A loaded model with its add-ons, and what it was loaded from, whose digests are already computed.

    `size` is the number of bytes of all its weights.
    """

    model: LatentDiffusionModel
    weights: Weights
    plan: MemoryPlan
    size: int = 0
    contexts: Contexts = field(default_factory=dict)

    def contexts_of(self, recipe: Recipe, inputs: Inputs = NO_INPUTS) -> list[Context]:
        """Return the contexts of `recipe` and its inputs. The text encoders must be there, unless these are known."""
        from sdcli.diffusion import pipeline
        from sdcli.diffusion.device import memory_of

        asked = pipeline.encoded_by(recipe)
        if asked not in self.contexts:
            with of_the_model(self.weights.model), memory_of(recipe):
                self.contexts[asked] = pipeline.encode_conditions(self.model, recipe, inputs)
        found = self.contexts[asked] = self.contexts.pop(asked)
        for each in list(islice(self.contexts, max(0, len(self.contexts) - MOST_CONTEXTS))):
            del self.contexts[each]
        return found


def load(
    weights: Weights,
    recipe: Recipe,
    plan: MemoryPlan,
    *,
    inputs: Inputs | None,
    coming: Sequence[Recipe] = (),
    known: Contexts | None = None,
) -> Kept:
    """Load `weights` for `recipe`, which must be resolved, as planned.

    A staged model gets the contexts of the recipe if its `inputs` are given, and those of the recipes that are `coming`
    and take no reference images, besides those that are `known`. Errors of a condition are only raised for `recipe`
    itself. Raises what `assemble.load` raises.
    """
    from sdcli.diffusion.device import free_memory
    from sdcli.models import assemble

    contexts = dict(known or {})
    if not plan.staged:
        return Kept(assemble.load(weights, recipe, offload=plan.offload), weights, plan, contexts=contexts)
    others = _unknown(coming, contexts)
    if inputs is not None or others:
        text = Kept(assemble.load(weights, recipe, stage="text", offload=plan.offload), weights, plan)
        for each in others[:MOST_CONTEXTS]:
            with suppress(SdcliError):
                text.contexts_of(each)
        if inputs is not None:
            text.contexts_of(recipe, inputs)
        contexts |= text.contexts
        del text
        free_memory()
    model = assemble.load(weights, recipe, stage="picture", offload=plan.offload)
    return Kept(model, weights, plan, contexts=contexts)


def _unknown(recipes: Iterable[Recipe], known: Contexts) -> Sequence[Recipe]:
    """Return the recipes whose contexts are not known and depend on no image, one for each context."""
    from sdcli.diffusion import pipeline

    found = {pipeline.encoded_by(each): each for each in recipes if not each.references.reference}
    return [each for key, each in found.items() if key not in known]


def fit(kept: Kept, weights: Weights, recipe: Recipe, plan: MemoryPlan, *, encode: bool) -> Kept | None:
    """Return a kept model for `recipe` with the add-ons of `weights`, or None if it has to be loaded again.

    The model itself must be the same. With `encode` the contexts of the recipe are needed too.
    """
    from sdcli.diffusion import pipeline
    from sdcli.models import assemble

    changed = (kept.weights.addons, kept.weights.digests) != (weights.addons, weights.digests)
    has_text = kept.model.has_text_encoders
    known = not encode or (not changed and pipeline.encoded_by(recipe) in kept.contexts)
    if plan.offload != kept.plan.offload or not (known or has_text):
        return None
    # hooks hold on to the parameters, and OpenVINO and compilers have converted them
    is_fixed = plan.offload == "group" or recipe.execution.engine != "torch" or recipe.execution.compile
    if changed and (is_fixed or not has_text):
        return None
    if changed:
        model = assemble.change(kept.model, kept.weights, weights, recipe)
        return Kept(model, weights, plan, kept.size)
    return Kept(kept.model, kept.weights, plan, kept.size, kept.contexts)


_MAX_REASON = 300  # characters
_OF_LIBRARIES = ("torch/nn/modules/module.py", "diffusers/models/", "diffusers/schedulers/", "transformers/models/")
"""What runs a network and a scheduler, whose configs are the model's."""
_OF_COMPILER = ("torch/_dynamo/backends/", "torch/_dynamo/convert_frame.py", "torch/_inductor/")


@contextmanager
def of_the_model(source: Source) -> Iterator[None]:
    """Convert what a network or a scheduler raises to ModelCorrupt: not every config that can be loaded can be run."""
    try:
        yield
    except (SdcliError, MemoryError):
        raise
    except Exception as error:
        frames = [Path(frame.f_code.co_filename).as_posix() for frame, _ in traceback.walk_tb(error.__traceback__)]
        reason = one_line(str(error))[:_MAX_REASON] or type(error).__name__
        if any(part in name for name in frames for part in _OF_COMPILER):
            what = f"{source.path} cannot be compiled: {reason}"
            raise InvalidRecipe(what, "omit --compile, or see more with --debug", "compile") from error
        if not any(part in name for name in frames for part in _OF_LIBRARIES):
            raise
        raise ModelCorrupt(
            f"{source.path} can be loaded, but not run: {reason}",
            "a config does not fit the weights; download the model again, or see which one with --debug",
        ) from error
