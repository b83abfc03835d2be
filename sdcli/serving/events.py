"""Pictures of the images API as a stream of server-sent events.

The events and their names are OpenAI's: https://platform.openai.com/docs/api-reference/images-streaming. With
`progress`, which is sdcli's own, there is one more kind of event after each step, and the last one of a picture has its
recipe and its command line too.
"""

from __future__ import annotations

import json
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any

from fastapi.responses import Response, StreamingResponse

from sdcli.errors import SdcliError
from sdcli.making.maker import LocalMaker, OnStep, Task
from sdcli.making.picture import Picture
from sdcli.planning.command_line import command_of
from sdcli.planning.resolve import Resolved
from sdcli.serving import refusals
from sdcli.serving.line import Job, Line, Work
from sdcli.terminal import streams

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdcli.diffusion.denoise import Step

GENERATION, EDIT = "image_generation", "image_edit"


@dataclass(frozen=True)
class Progress:
    """A finished step out of `total`, with a small preview for the page, and one of the picture's size; PNGs."""

    index: int
    total: int
    preview: bytes | None
    partial: bytes | None


@dataclass(frozen=True)
class Wanted:
    """What a stream is to have: its `kind`, the number of partial images of each picture, and events of progress."""

    kind: str
    size: tuple[int, int]
    partial_images: int = 0
    progress: bool = False
    extra: Callable[[Picture], Mapping[str, Any]] = field(default=lambda picture: {})
    """What the last event of a picture has besides the picture."""

    def is_partial(self, step: Step) -> bool:
        """Whether a partial image is sent after this step: they are spread evenly over the steps."""
        parts = range(1, self.partial_images + 1)
        return step.index in {max(1, step.total * each // (self.partial_images + 1)) for each in parts}


def works(maker: LocalMaker, tasks: Sequence[Task], wanted: Wanted) -> list[Work]:
    """Return the work of each task, which tells `Progress` after each step."""
    return [partial(_make, maker, each, wanted) for each in tasks]


def _make(maker: LocalMaker, task: Task, wanted: Wanted, on_step: OnStep) -> tuple[Picture, ...]:
    def tell(step: Step) -> None:
        is_partial = wanted.is_partial(step)
        image = step.preview() if wanted.progress or is_partial else None
        small = _png(image) if image is not None and wanted.progress else None
        large = _png(image.resize(wanted.size)) if image is not None and is_partial else None
        on_step(Progress(step.index, step.total, small, large))

    return tuple(maker.make(task, tell))


def _png(image: Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def respond(line: Line, todo: Sequence[Work], wanted: Wanted, resolved: Resolved, *, debug: bool) -> Response:
    """Queue the first of `todo`, and respond with the events of all. Raises ServerBusy and ServerUnavailable."""
    first = line.join(todo[0])
    return StreamingResponse(
        _events(line, first, todo, wanted, resolved, debug),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _events(
    line: Line, first: Job, todo: Sequence[Work], wanted: Wanted, resolved: Resolved, debug: bool
) -> AsyncIterator[bytes]:
    """Run the works one after another; closing the iterator cancels the current one."""
    job: Job = first
    try:
        if wanted.progress:
            yield _event(f"{wanted.kind}.progress", step=0, total=None, waiting=line.waiting, b64_json=None)
        for number, work in enumerate(todo):
            job = line.join(work, under_way=True) if number else first
            partials = 0
            async with aclosing(line.follow(job)) as events:
                async for event in events:
                    if isinstance(event, Progress):
                        for told in _of_step(event, wanted, partials):
                            yield told
                        partials += event.partial is not None
                        continue
                    for picture in event:
                        yield _completed(picture, wanted, resolved)
    except Exception as error:  # noqa: BLE001  the status is sent already: every exception is an event
        yield _failure(error, debug)
    finally:
        line.leave(job)


def _of_step(step: Progress, wanted: Wanted, partials: int) -> list[bytes]:
    told = []
    if wanted.progress:
        preview = None if step.preview is None else b64encode(step.preview).decode()
        told.append(_event(f"{wanted.kind}.progress", step=step.index, total=step.total, b64_json=preview))
    if step.partial is not None:
        picture = {"b64_json": b64encode(step.partial).decode(), **_about(wanted)}
        told.append(_event(f"{wanted.kind}.partial_image", **picture, partial_image_index=partials))
    return told


def _completed(picture: Picture, wanted: Wanted, resolved: Resolved) -> bytes:
    recorded = {"b64_json": b64encode(picture.png).decode(), **_about(wanted), **wanted.extra(picture)}
    if wanted.progress:
        command = command_of(resolved.model, [picture.recipe])
        recorded |= {"recipe": picture.recipe.to_dict(), "command": command, "seconds": round(picture.seconds, 3)}
    return _event(f"{wanted.kind}.completed", **recorded)


def _about(wanted: Wanted) -> dict[str, Any]:
    """What OpenAI's events have besides the picture."""
    size = f"{wanted.size[0]}x{wanted.size[1]}"
    return {
        "created_at": int(time.time()),
        "size": size,
        "quality": "auto",
        "background": "opaque",
        "output_format": "png",
    }


def _failure(error: Exception, debug: bool) -> bytes:
    """The error object of an exception as an event, which OpenAI's clients raise."""
    if isinstance(error, SdcliError):
        content = json.loads(bytes(refusals.refusal(error).body))
    else:
        if debug:
            streams.show_traceback(error)
        message = f"{type(error).__name__}: {error}; this is a bug in sdcli"
        streams.complain(message)
        content = {"error": {"message": message, "type": "server_error", "param": None, "code": "bug"}}
    return _event("error", **content)


def _event(kind: str, /, **content: Any) -> bytes:
    text = json.dumps({"type": kind, **content}, allow_nan=False)
    return f"event: {kind}\ndata: {text}\n\n".encode()
