"""Several boards of one gateway flashed at once, a thread each, and the exit code of them all."""

from __future__ import annotations

import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gateway.flash.client import GatewayClient, RequestError
from gateway.flash.display import Display
from gateway.flash.files import Images
from gateway.flash.outcome import Outcome

INTERRUPTED = 128 + signal.SIGINT


#: What is said of a board at a Ctrl-C, by the last event that tells how far it has got.
_UNTOUCHED = "interrupted before anything was done to the board"
_RESET = "interrupted before anything was written: the board may be in its bootloader until a reset"
_HALF_WRITTEN = (
    "interrupted while it was written: the board does not start until it is flashed again,"
    " which the same command does"
)
_WRITTEN = "interrupted when all was written and verified: the board may not have been reset"


class Boards:
    """See the module; `disconnect` disconnects the other clients of the ports."""

    def __init__(
        self, client: GatewayClient, images: Images, display: Display, *, disconnect: bool
    ) -> None:
        self._client = client
        self._images = images
        self._display = display
        self._disconnect = disconnect
        self._lock = threading.Lock()
        self._interrupted = False
        self._states: dict[str, str] = {}  # of the boards that are not done
        self._verified: dict[str, int] = {}

    def flash(self, names: list[str]) -> int:
        """Flash them; returns the exit code: that of the first board that has failed.

        After a Ctrl-C each board's state is shown, all connections are closed, which ends the
        flashing, and a second one ends the process at once.
        """
        self._states = dict.fromkeys(names, _UNTOUCHED)
        # No daemon threads: each notices that its connection is closed.
        pool = ThreadPoolExecutor(len(names))
        before = signal.getsignal(signal.SIGINT)
        if before is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            try:
                running = [pool.submit(self._flash_one, name) for name in names]
                outcomes = [each.result() for each in running]
            except KeyboardInterrupt:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                self._interrupt()
                return INTERRUPTED
        finally:
            pool.shutdown(cancel_futures=True)
            signal.signal(signal.SIGINT, before)
        self._display.close()
        return next((each.exit_code for each in outcomes if each is not Outcome.WRITTEN), 0)

    def _interrupt(self) -> None:
        with self._lock:
            self._interrupted = True
            for name, state in self._states.items():
                is_half = state == _HALF_WRITTEN
                self._display.ended(name, Outcome.INCOMPLETE if is_half else Outcome.FAILED, state)
        self._display.close()
        self._client.hang_up()

    def _flash_one(self, name: str) -> Outcome:
        message = ""

        def report(event: dict[str, Any]) -> None:
            nonlocal message
            message = str(event.get("message", ""))
            with self._lock:
                self._note(name, event.get("event"))
                if not self._interrupted:
                    self._display.event(name, event)

        try:
            outcome = self._client.flash(name, self._images, report, disconnect=self._disconnect)
        except RequestError as error:
            outcome, message = error.outcome, str(error)
        with self._lock:
            self._states.pop(name, None)
            if not self._interrupted:
                self._display.ended(name, outcome, message)
        return outcome

    def _note(self, name: str, event: object) -> None:
        """How far a board has got; once the chip has answered, its flash may be erased."""
        match event:
            case "started":
                self._states[name] = _RESET
            case "chip":
                self._states[name] = _HALF_WRITTEN
            case "verified":
                self._verified[name] = self._verified.get(name, 0) + 1
                if self._verified[name] >= len(self._images.plan.images):
                    self._states[name] = _WRITTEN
