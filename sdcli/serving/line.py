"""A queue with a limit, and one worker thread. Knows nothing of pictures.

There is one thread because two pictures at once need twice the memory and are not faster. It is always the same thread
because torch's number of threads is a setting per thread.
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
"""The work of a job: called on the thread with a step callback; returns its results."""


class Cancelled(Exception):
    """Raised on the thread, at a step, in work whose client is gone."""


@dataclass(eq=False)
class Job:
    """Queued work. `events` are its steps, then its results or an exception."""

    work: Work
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    cancelled: threading.Event = field(default_factory=threading.Event)

    def tell(self, event: Any) -> None:
        """Add to `events`, from any thread."""
        _call(self.loop, self.events.put_nowait, event)

    def run(self) -> Any:
        """Do the work on the thread and return its last event."""

        def on_step(step: Any) -> None:
            if self.cancelled.is_set():
                raise Cancelled
            self.tell(step)

        try:
            return self.work(on_step)
        except Cancelled:
            return _stopping()
        except BaseException as error:  # noqa: BLE001  passed on to the client
            return error


class Line:
    """The current job and at most `limit` waiting ones. Used from one event loop."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.idle_since = time.monotonic()
        self._jobs: dict[Job, Future[Any]] = {}
        self._stopping = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pictures")

    @property
    def busy(self) -> bool:
        """Whether a job is running or waiting."""
        return bool(self._jobs)

    @property
    def is_stopping(self) -> bool:
        """Whether new jobs are refused."""
        return self._stopping

    @property
    def waiting(self) -> int:
        """How many jobs wait for the current one."""
        return max(len(self._jobs) - 1, 0)

    def check_room(self, *, under_way: bool = False) -> None:
        """Raise ServerBusy if the queue is full, and ServerUnavailable if it is closed.

        A series that is `under_way` is exempt from the limit.
        """
        if self._stopping:
            raise _stopping()
        if len(self._jobs) > self.limit and not under_way:
            raise ServerBusy(
                f"{self.waiting} pictures are waiting, which is the limit of the warm process",
                "try again later, or start it with a larger --queue",
            )

    def join(self, work: Work, *, under_way: bool = False) -> Job:
        """Add `work` to the queue. Raises what `check_room` raises."""
        self.check_room(under_way=under_way)
        job = Job(work, asyncio.get_running_loop())
        future = self._jobs[job] = self._thread.submit(job.run)
        future.add_done_callback(lambda done: _call(job.loop, self._end, job, done))
        return job

    async def follow(self, job: Job) -> AsyncGenerator[Any, None]:
        """Yield the steps of `job`, then its results as a tuple, or raise its exception. Closing it cancels the job."""
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
        """Refuse new jobs and cancel waiting ones. The current job continues."""
        self._stopping = True
        for future in self._jobs.values():
            future.cancel()

    def cancel(self) -> None:
        """Cancel the current job at its next step."""
        for job in self._jobs:
            job.cancelled.set()

    def end(self) -> None:
        """Wait for the thread to end. Call it last, outside the event loop."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _end(self, job: Job, done: Future[Any]) -> None:
        """Remove the job before its last event, so that its client can send the next request."""
        del self._jobs[job]
        self.idle_since = time.monotonic()
        job.events.put_nowait(_stopping() if done.cancelled() else done.result())


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: Any) -> None:
    """Schedule a call in `loop`, from any thread."""
    with suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(function, *arguments)


def _stopping() -> ServerUnavailable:
    return ServerUnavailable("the warm process is stopping", "start it again, or unset SDCLI_SOCKET")
