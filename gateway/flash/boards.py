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


class Boards:
    """See the module; `disconnect` disconnects the other clients of the ports."""

    def __init__(
        self, client: GatewayClient, images: Images, display: Display, *, disconnect: bool
    ) -> None:
        self._client = client
        self._images = images
        self._display = display
        self._disconnect = disconnect
        self._interrupted = threading.Event()

    def flash(self, names: list[str]) -> int:
        """Returns the exit code: that of the first board that has failed, in their order."""
        # No daemon threads: a Ctrl-C makes each give up at its next event, and hang up.
        with ThreadPoolExecutor(len(names)) as pool:
            running = [pool.submit(self._flash_one, name) for name in names]
            try:
                outcomes = [each.result() for each in running]
            except KeyboardInterrupt:
                self._interrupted.set()
                self._client.hang_up()
                for each in running:
                    each.cancel()
                pool.shutdown()
                self._display.close()
                return INTERRUPTED
        self._display.close()
        return next((each.exit_code for each in outcomes if each is not Outcome.WRITTEN), 0)

    def _flash_one(self, name: str) -> Outcome:
        message = ""

        def report(event: dict[str, Any]) -> None:
            nonlocal message
            message = str(event.get("message", ""))
            self._display.event(name, event)

        try:
            outcome = self._client.flash(name, self._images, report, disconnect=self._disconnect)
        except RequestError as error:
            outcome, message = error.outcome, str(error)
        if not self._interrupted.is_set():
            self._display.ended(name, outcome, message)
        return outcome
