"""Starts the workers of a cluster, and checks that each has the right version, and the models that it needs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass

from sdcli.errors import ModelError, ModelNotFound, ServerUnavailable, UsageError
from sdcli.making.cluster import shipping, wanted
from sdcli.making.cluster.fleet import Fleet, WorkerDied
from sdcli.making.cluster.maker import ClusterMaker, Slot
from sdcli.making.cluster.wanted import Wanted
from sdcli.making.cluster.worker import VERSION, Greeting
from sdcli.making.warm import threads_of_environment
from sdcli.models.weights import Weights
from sdcli.recipe.recipe import Recipe
from sdcli.terminal import streams


@dataclass(frozen=True)
class Cluster:
    """A cluster of Ray by its address, and whether models are copied to machines that lack them."""

    address: str
    ship: bool = False


SECONDS_TO_START = 60.0
"""How long to wait for workers. Later ones, such as where all processors are in use now, take part when they start."""


def start_cluster(cluster: Cluster, coming: Iterable[tuple[Weights, Recipe]]) -> ClusterMaker:
    """Connect to a cluster, and start workers for the recipes that are `coming`; see `start`.

    Each worker has as many processors as the most threads of a recipe, or all of its machine if one has no number of
    threads. Raises what `start` and `on_ray.RayFleet` raise.
    """
    from sdcli.making.cluster.on_ray import RayFleet

    needed: dict[Wanted, None] = {}
    devices, threads = set(), set()
    for weights, name, execution in {(weights, each.model, each.execution) for weights, each in coming}:
        needed |= dict.fromkeys(wanted.of(weights, name))
        devices.add(execution.device)
        threads.add(execution.threads or threads_of_environment())
    device = devices.pop() if len(devices) == 1 else "auto"
    fleet = RayFleet(cluster.address)
    try:
        return start(fleet, list(needed), threads=0 if 0 in threads else max(threads), device=device, ship=cluster.ship)
    except BaseException:
        fleet.close()
        raise


def start(
    fleet: Fleet,
    needed: Sequence[Wanted],
    *,
    threads: int,
    device: str,
    ship: bool = False,
    seconds: float = SECONDS_TO_START,
) -> ClusterMaker:
    """Start a worker at each place of `fleet`, for pictures with so many `threads` (0 for a machine's own number).

    Workers must have all that is `needed`, which is copied to them with `ship`.

    Raises UsageError if there is no place for a worker, ServerUnavailable if none starts or has another version, and
    ModelNotFound if one lacks something.
    """
    places = fleet.places(threads, device)
    if not places:
        what = "no GPU" if device == "cuda" else "no processors"
        raise UsageError(f"the cluster has {what} for workers", "add a machine: ray start --address=HOST:PORT")
    slots = [Slot(place, fleet.start(place)) for place in places]
    try:
        greetings = {slot: slot.remote.call("greet", needed) for slot in slots}
        _wait(greetings.values(), seconds)
        greetings |= _checked(greetings, needed, ship=ship)
    except BaseException:
        for slot in slots:
            slot.remote.kill()
        raise
    return ClusterMaker(fleet, greetings, greet=lambda slot: slot.remote.call("greet", needed))


def _wait(greetings: Iterable[Future[Greeting]], seconds: float) -> None:
    """Wait until all workers have answered, and not longer than so many seconds. Raises ServerUnavailable."""
    left, until = set(greetings), time.monotonic() + seconds
    errors: list[BaseException | None] = []
    while left and (rest := until - time.monotonic()) > 0:
        done, left = wait(left, rest, FIRST_COMPLETED)
        errors += [each.exception() for each in done]
    if all(errors):  # also if no worker has answered
        reason = str(errors[0]) if errors else f"none started within {seconds:g} seconds"
        hint = "install sdcli on each machine" if errors else "see whether its processors are in use: ray status"
        raise ServerUnavailable(f"the cluster has no worker: {reason}", hint)


def _checked(
    greetings: Mapping[Slot, Future[Greeting]], needed: Sequence[Wanted], *, ship: bool
) -> dict[Slot, Future[Greeting]]:
    """Check what the workers that have answered have, and return the greetings of those that got models since."""
    known = {slot: each.result() for slot, each in greetings.items() if each.done() and not each.exception()}
    for slot, greeting in known.items():
        if greeting.version != VERSION:
            raise ServerUnavailable(f"{slot.place.name} {greeting.trouble}", "install the same version on each machine")
        if greeting.missing and not ship:
            hint = "copy it there, use `sdcli models add` or `sdcli models pull` there, or use --ship-models"
            raise ModelNotFound(f"{slot.place.name} {greeting.trouble}", hint)
    arithmetic = sorted({greeting.arithmetic for greeting in known.values()})
    if len(arithmetic) > 1:
        streams.warn(f"pixels can depend on the worker, because workers differ: {'; '.join(arithmetic)}")
    lacking = {slot: {each.sha256 for each in greeting.missing} for slot, greeting in known.items() if greeting.missing}
    for slot in {slot.place.node: slot for slot in lacking}.values():  # one on each machine
        _ship(slot, [each for each in needed if each.sha256 in lacking[slot]])
    return {slot: slot.remote.call("greet", needed) for slot in lacking}


def _ship(slot: Slot, missing: Iterable[Wanted]) -> None:
    """Copy models to the machine of a worker. Raises ModelError if that fails, or the copy is not what is wanted."""
    for each in missing:
        streams.note(f"copying the {each.title} to {slot.place.name}")
        try:
            for piece in shipping.pieces(each.source):
                slot.remote.call("receive", each, piece).result()
        except (OSError, WorkerDied) as error:
            hint = "check the space on that machine, and the model's files on this one"
            raise ModelError(f"the {each.title} cannot be copied to {slot.place.name}: {error}", hint) from error
        if slot.remote.call("greet", [each]).result().missing:
            raise ModelNotFound(f"the {each.title} cannot be copied to {slot.place.name}", "copy its files by hand")
