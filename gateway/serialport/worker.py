"""One thread for the calls on one device that may block in the kernel, in order, bounded in time.

An ioctl on a USB device that has just vanished can hold its thread for seconds, closing one can
wait for its output to drain. Such calls of one device must not delay another, so each device
has its own thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any, Final, TypeVar

from gateway import clock

T = TypeVar("T")


#: The end of each limit counts again from the moment in which the loop runs again: if it, or the
#: whole process, was held up until the limit was over, the thread may just have had no turn.
_LAST_CHANCE_S: Final = 1.0


@dataclass(slots=True)
class _Call:
    run: Callable[[], Any]
    done: Callable[[Any], None]
    failed: Callable[[Exception], None]
    limit_s: float
    last_chance_s: float  # the end of the limit, counted while the loop runs
    last_chance_at_s: float = 0.0
    has_ended: bool = False  # set by the thread, before the loop knows


def on_loop(loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> Callable[[], None]:
    """The same for another thread to call; nothing once the loop has ended."""

    def on_thread() -> None:
        # The loop may have been closed while the kernel kept the thread.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(call)

    return on_thread


class Worker:
    """Runs calls one after the other off the loop; results come back on the loop.

    `submit` and `stop` are for the loop's thread only. When a call takes longer than its limit,
    the thread is given up: what waits is dropped, the late result is ignored, nothing more is
    taken, and `on_stuck(limit_s)` is called, once. It is for the owner to `stop` the thread then:
    the last call runs when the kernel lets go of the thread, which is a daemon, so that a stuck
    one does not keep the process. `on_stuck` may be replaced between calls. `took` gets the
    seconds that each call took.
    """

    def __init__(
        self,
        name: str,
        on_stuck: Callable[[float], None],
        took: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.on_stuck = on_stuck
        self._took = took
        self._waiting: deque[_Call] = deque()
        self._running: _Call | None = None
        self._overdue: clock.Timer | None = None
        self._look_at_s = 0.0  # when that is due
        self._ended = False  # stopped or given up: nothing more is reported
        self._stopped = False
        self._inbox: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(
        self,
        run: Callable[[], T],
        done: Callable[[T], None],
        failed: Callable[[Exception], None],
        *,
        limit_s: float,
    ) -> None:
        """Run `run` on the thread after the calls submitted before.

        Exactly one of `done(result)` and `failed(error)` is called on the loop, unless the
        thread is stopped or given up first. `limit_s` counts from the moment that the call's
        turn comes.
        """
        if self._ended:
            return
        last_chance_s = min(_LAST_CHANCE_S, limit_s / 2)
        self._waiting.append(_Call(run, done, failed, limit_s, last_chance_s))
        if self._running is None:
            self._start_next()

    def stop(self, last: Callable[[], None]) -> None:
        """Drop what waits, let the running call end, run `last` on the thread and end it.

        Nothing is reported from here on, not even the result of a call that has just ended.
        """
        if self._stopped:
            return
        self._stopped = True
        self._end()
        self._inbox.put(last)
        self._inbox.put(None)

    def _end(self) -> None:
        self._ended = True
        self._waiting.clear()
        if self._overdue is not None:
            self._overdue.cancel()

    def _start_next(self) -> None:
        if not self._waiting:
            self._running = None
            return
        call = self._running = self._waiting.popleft()
        call.last_chance_at_s = clock.time() + call.limit_s - call.last_chance_s
        if self._overdue is None or call.last_chance_at_s < self._look_at_s:
            self._look_later(call)
        self._inbox.put(partial(self._run, call))

    def _look_later(self, call: _Call) -> None:
        """Look at the call when only its last chance is left.

        One timer serves all calls: most end within moments, and a timer for each costs more.
        """
        if self._overdue is not None:
            self._overdue.cancel()
        self._look_at_s = call.last_chance_at_s
        self._overdue = clock.call_at(self._look_at_s, self._look, call)

    def _look(self, call: _Call) -> None:
        running, self._overdue = self._running, None
        if running is call:
            self._overdue = clock.call_later(call.last_chance_s, self._give_up, call)
        elif running is not None:
            self._look_later(running)

    def _give_up(self, call: _Call) -> None:
        self._overdue = None
        if self._running is not call:
            if self._running is not None:
                self._look_later(self._running)
        elif not call.has_ended:
            self._end()
            self.on_stuck(call.limit_s)

    def _work(self) -> None:
        while (job := self._inbox.get()) is not None:
            job()

    def _run(self, call: _Call) -> None:
        outcome: object
        begun = time.monotonic()
        try:
            receiver, outcome = call.done, call.run()
        except Exception as error:
            receiver, outcome = call.failed, error
        took_s = time.monotonic() - begun
        call.has_ended = True
        with contextlib.suppress(RuntimeError):  # see on_loop
            self._loop.call_soon_threadsafe(self._finished, receiver, outcome, took_s)

    def _finished(self, receiver: Callable[[Any], None], outcome: object, took_s: float) -> None:
        if self._ended:
            return
        self._took(took_s)
        try:
            receiver(outcome)
        finally:
            if not self._ended:
                self._start_next()
