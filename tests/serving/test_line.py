"""The line of jobs: one at a time, in order, bounded, and cancelled at a step."""

import asyncio
import threading

import pytest

from sdcli.errors import ServerBusy, ServerUnavailable
from sdcli.serving.line import Cancelled, Line


class Gate:
    """Work that says when it has begun, and goes on from step to step when it is let."""

    def __init__(self, name: str = "made") -> None:
        self.name = name
        self.begun, self.step, self.ended = threading.Event(), threading.Semaphore(0), threading.Event()
        self.raised: BaseException | None = None

    def __call__(self, on_step):
        self.begun.set()
        try:
            for index in range(3):
                assert self.step.acquire(timeout=10)
                on_step(index)
        except BaseException as error:
            self.raised = error
            raise
        finally:
            self.ended.set()
        return (self.name,)

    def open(self) -> "Gate":
        self.step.release(3)
        return self


async def all_of(line, job):
    return [event async for event in line.follow(job)]


async def soon(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 10)


def run(limit, story):
    line = Line(limit)
    try:
        return asyncio.run(story(line))
    finally:
        line.end()


def test_steps_then_what_was_made():
    async def story(line):
        return await all_of(line, line.join(Gate("fox").open()))

    assert run(0, story) == [0, 1, 2, ("fox",)]


def test_jobs_are_done_one_at_a_time_and_in_order():
    async def story(line):
        first, second = Gate("first"), Gate("second").open()
        jobs = [line.join(first), line.join(second)]
        await soon(first.begun)
        assert not second.begun.is_set()
        first.open()
        return [(await all_of(line, job))[-1] for job in jobs]

    assert run(5, story) == [("first",), ("second",)]


def test_the_thread_is_always_the_same():
    async def story(line):
        return [(await all_of(line, line.join(lambda on_step: (threading.get_ident(),))))[0] for _ in range(3)]

    assert len(set(run(0, story))) == 1


def test_the_line_is_bounded_but_for_a_series_under_way():
    async def story(line):
        gate = Gate()
        jobs = [line.join(gate)]
        jobs += [line.join(Gate().open()) for _ in range(2)]
        with pytest.raises(ServerBusy, match="2 pictures are waiting"):
            line.join(Gate())
        jobs.append(line.join(Gate().open(), under_way=True))
        gate.open()
        for job in jobs:
            await all_of(line, job)
        assert not line.busy
        await all_of(line, line.join(Gate().open()))  # there is room again

    run(2, story)


def test_who_stops_listening_cancels_at_the_next_step_and_frees_the_thread():
    async def story(line):
        gate = Gate()
        listening = asyncio.create_task(all_of(line, line.join(gate)))
        await soon(gate.begun)
        listening.cancel()
        await asyncio.sleep(0)
        gate.open()
        await soon(gate.ended)
        assert isinstance(gate.raised, Cancelled)
        return await all_of(line, line.join(Gate("next").open()))

    assert run(0, story)[-1] == ("next",)


def test_who_leaves_before_his_turn_frees_his_place():
    async def story(line):
        gate, left = Gate(), Gate()
        job = line.join(gate)
        waiting = line.join(left)
        line.leave(waiting)
        await asyncio.sleep(0.05)
        other = line.join(Gate("other").open())
        gate.open()
        await all_of(line, job)
        assert (await all_of(line, other))[-1] == ("other",)
        assert not left.begun.is_set()

    run(1, story)


def test_what_the_work_raises_is_raised_to_the_one_who_waits():
    def fail(on_step):
        raise ZeroDivisionError("boom")

    async def story(line):
        with pytest.raises(ZeroDivisionError, match="boom"):
            await all_of(line, line.join(fail))
        return await all_of(line, line.join(Gate().open()))

    assert run(0, story)[-1] == ("made",)


def test_a_closed_line_finishes_what_is_in_hand_and_sends_the_others_away():
    async def story(line):
        gate = Gate("in hand")
        in_hand, waiting = line.join(gate), line.join(Gate())
        await soon(gate.begun)
        line.close()
        with pytest.raises(ServerUnavailable, match="stopping"):
            await all_of(line, waiting)
        with pytest.raises(ServerUnavailable, match="stopping"):
            line.join(Gate(), under_way=True)
        gate.open()
        return await all_of(line, in_hand)

    assert run(5, story)[-1] == ("in hand",)


def test_a_cancelled_line_says_so_to_the_one_in_hand():
    async def story(line):
        gate = Gate()
        job = line.join(gate)
        await soon(gate.begun)
        line.close()
        line.cancel()
        gate.open()
        with pytest.raises(ServerUnavailable, match="stopping"):
            await all_of(line, job)

    run(0, story)


def test_idle_time_begins_when_the_last_job_ends():
    async def story(line):
        before = line.idle_since
        job = line.join(Gate().open())
        assert line.busy
        await all_of(line, job)
        assert not line.busy  # the place is free before the answer is out
        assert line.idle_since > before

    run(0, story)
