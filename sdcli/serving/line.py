"""One picture at a time: a thread that works, and the bounded line of jobs before it. Knows nothing of what they are.

One thread, because two pictures at once take twice the memory and are no sooner done; and always the same thread,
because torch keeps its number of threads for each thread apart.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from sdcli.errors import ServerBusy, ServerUnavailable

Work = Callable[[Callable[[Any], None]], tuple[Any, ...]]
"""What is to be done: called on the thread with what to call after each step; returns what it made."""


class Cancelled(Exception):
    """Raised on the thread, at a step, in work that nobody waits for any more."""


@dataclass(eq=False)
class Job:
    """Work that was let into the line. `events` are its steps, then what it made or the exception that kept it."""

    work: Work
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    cancelled: threading.Event = field(default_factory=threading.Event)

    def tell(self, event: Any) -> None:
        """Add to `events`, from any thread."""
        _call(self.loop, self.events.put_nowait, event)

    def run(self) -> Any:
        """Do the work, on the thread; returns its last event."""

        def on_step(step: Any) -> None:
            if self.cancelled.is_set():
                raise Cancelled
            self.tell(step)

        try:
            return self.work(on_step)
        except Cancelled:
            return _stopping()
        except BaseException as error:  # noqa: BLE001  whatever it is, it is for the one who waits
            return error


class Line:
    """The jobs that are not done: the one in hand, and at most `limit` that wait. Used from one event loop."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.idle_since = time.monotonic()
        self._jobs: dict[Job, Future[Any]] = {}
        self._stopping = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pictures")

    @property
    def busy(self) -> bool:
        """Whether a job is in hand or waits."""
        return bool(self._jobs)

    def join(self, work: Work, *, under_way: bool = False) -> Job:
        """Put `work` at the end of the line. A series `under_way` is let in whatever its length.

        Raises ServerBusy where the line is full, ServerUnavailable where it is closed.
        """
        if self._stopping:
            raise _stopping()
        if len(self._jobs) > self.limit and not under_way:
            raise ServerBusy(
                f"{len(self._jobs) - 1} pictures wait already, and the warm process takes no more",
                "try again later, or start it with a larger --queue",
            )
        job = Job(work, asyncio.get_running_loop())
        future = self._jobs[job] = self._thread.submit(job.run)
        future.add_done_callback(lambda done: _call(job.loop, self._end, job, done))
        return job

    async def follow(self, job: Job) -> AsyncGenerator[Any, None]:
        """The steps of `job`, then what it made, a tuple; raises what kept it. To stop listening cancels the job."""
        try:
            while True:
                event = await job.events.get()
                if isinstance(event, BaseException):
                    raise event
                yield event
                if isinstance(event, tuple):
                    return
        finally:
            self.leave(job)

    def leave(self, job: Job) -> None:
        """Cancel `job`: before it starts, or at its next step."""
        job.cancelled.set()
        if job in self._jobs:
            self._jobs[job].cancel()

    def close(self) -> None:
        """Let nobody in any more, and send those that wait away. The job in hand goes on."""
        self._stopping = True
        for future in self._jobs.values():
            future.cancel()

    def cancel(self) -> None:
        """Cancel the job in hand at its next step."""
        for job in self._jobs:
            job.cancelled.set()

    def end(self) -> None:
        """Wait until the thread has ended. For the last, outside the event loop."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _end(self, job: Job, done: Future[Any]) -> None:
        """Free the place first, so that who has his answer can come again."""
        del self._jobs[job]
        self.idle_since = time.monotonic()
        job.events.put_nowait(_stopping() if done.cancelled() else done.result())


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: Any) -> None:
    """Call it soon in `loop`, from any thread."""
    with suppress(RuntimeError):  # the loop is closed: nobody listens
        loop.call_soon_threadsafe(function, *arguments)


def _stopping() -> ServerUnavailable:
    return ServerUnavailable("the warm process is stopping", "start it again, or unset SDCLI_SOCKET")
