"""Connections with a time limit and a limit to their number. Knows HTTP, nothing of what is asked.

uvicorn waits without end for a client that sends nothing, half a request, or does not read its response; a thousand of
those use up the descriptors of the process.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

_LATE = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Connection(H11Protocol):
    """A connection that is closed if a request takes more than `seconds` to arrive.

    With more than `most` connections, the one that has waited longest for a request is closed for the new one. With
    `hurried`, a response must be read as fast as a request is sent.
    """

    def __init__(self, *arguments: Any, most: int, seconds: float, hurried: bool, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.most, self.seconds, self.hurried = most, seconds, hurried
        self.since = self.loop.time()
        self._deadline: asyncio.TimerHandle | None = None

    @property
    def waits(self) -> bool:
        """Whether the client has not sent a complete request yet."""
        cycle = self.cycle
        return cycle is None or cycle.response_complete or cycle.more_body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Limit the time until the first request, and make room for this connection."""
        super().connection_made(transport)
        self._set_deadline()
        if len(self.connections) > self.most:
            others = (cast(Connection, each) for each in self.connections if each is not self)
            idle = [each for each in others if each.waits and not each.transport.is_closing()]
            min(idle, key=lambda each: each.since, default=self).transport.abort()

    def data_received(self, data: bytes) -> None:
        """Limit the time of a request from its first byte to its last one."""
        if self._deadline is None and self.waits:
            self.since = self.loop.time()
        super().data_received(data)
        if not self.waits:
            self._clear_deadline()
        elif self._deadline is None:
            self._set_deadline()

    def on_response_complete(self) -> None:
        """Limit the time of a next request that has begun to arrive with the last one."""
        super().on_response_complete()
        if self._deadline is None and self.waits and not self.cycle.response_complete:
            self._set_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the time limit."""
        self._clear_deadline()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Limit the time in which the client must read."""
        super().pause_writing()
        if self.hurried:
            self._set_deadline()

    def resume_writing(self) -> None:
        """Forget the time limit, once the client has read."""
        super().resume_writing()
        if self.hurried:
            self._clear_deadline()

    def _set_deadline(self) -> None:
        self._clear_deadline()
        self._deadline = self.loop.call_later(self.seconds, self._end)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _end(self) -> None:
        """Close the connection, with an answer if a part of a request has come and none was sent."""
        if self.cycle is not None and (self.cycle.response_started or not self.waits):
            self.transport.abort()
        else:
            self.transport.write(_LATE)
            self.transport.close()
