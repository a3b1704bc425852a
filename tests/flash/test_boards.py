"""Several boards at once, and the exit code of them all."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, cast

import pytest

from gateway.flash.boards import INTERRUPTED, Boards
from gateway.flash.client import GatewayClient, RequestError
from gateway.flash.files import Images
from gateway.flash.outcome import Outcome
from gateway.flash.plan import FlashPlan

LIMIT_S = 30.0
IMAGES = Images(FlashPlan(()), ())


class FakeClient:
    """Has an outcome for each board, or an error; all are under way before one ends."""

    def __init__(self, outcomes: dict[str, Outcome | RequestError]) -> None:
        self._outcomes = outcomes
        self._all_there = threading.Barrier(len(outcomes), timeout=LIMIT_S)
        self.hung_up = threading.Event()

    def flash(
        self,
        name: str,
        images: Images,
        report: Callable[[dict[str, Any]], None],
        *,
        disconnect: bool,
    ) -> Outcome:
        assert (images, disconnect) == (IMAGES, True)
        self._all_there.wait()
        outcome = self._outcomes[name]
        if isinstance(outcome, RequestError):
            raise outcome
        report({"event": "done", "message": f"of {name}"})
        return outcome

    def hang_up(self) -> None:
        self.hung_up.set()


class FakeDisplay:
    """Writes down how each board has ended."""

    def __init__(self) -> None:
        self.ends: set[tuple[str, Outcome, str]] = set()
        self.is_closed = False

    def event(self, board: str, event: dict[str, Any]) -> None:
        pass

    def ended(self, board: str, outcome: Outcome, message: str) -> None:
        self.ends.add((board, outcome, message))

    def close(self) -> None:
        self.is_closed = True


def boards_of(client: FakeClient, display: FakeDisplay) -> Boards:
    return Boards(cast("GatewayClient", client), IMAGES, display, disconnect=True)


def test_all_are_flashed_at_the_same_time() -> None:
    display = FakeDisplay()
    client = FakeClient(dict.fromkeys("abc", Outcome.WRITTEN))
    assert boards_of(client, display).flash(list("abc")) == 0
    assert display.ends == {(name, Outcome.WRITTEN, f"of {name}") for name in "abc"}
    assert display.is_closed


def test_the_exit_code_is_that_of_the_first_that_has_failed() -> None:
    display = FakeDisplay()
    gone = RequestError(Outcome.UNREACHABLE, "gone")
    client = FakeClient({"a": Outcome.WRITTEN, "b": gone, "c": Outcome.INCOMPLETE})
    assert boards_of(client, display).flash(list("abc")) == Outcome.UNREACHABLE.exit_code
    assert ("b", Outcome.UNREACHABLE, "gone") in display.ends
    assert len(display.ends) == 3


def test_a_ctrl_c_hangs_up_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    class Waiting(FakeClient):
        def flash(self, *_: Any, **__: Any) -> Outcome:
            assert self.hung_up.wait(LIMIT_S)
            raise RequestError(Outcome.UNREACHABLE, "hung up")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("concurrent.futures.Future.result", interrupt)
    display = FakeDisplay()
    assert boards_of(Waiting({"a": Outcome.WRITTEN}), display).flash(["a"]) == INTERRUPTED == 130
    assert not display.ends
