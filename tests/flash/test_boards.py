"""Several boards at once, and the exit code of them all."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any, cast

import pytest

from gateway.flash.boards import INTERRUPTED, Boards
from gateway.flash.client import GatewayClient, RequestError
from gateway.flash.files import Images
from gateway.flash.outcome import Outcome
from gateway.flash.plan import FlashImage, FlashPlan

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


@pytest.mark.parametrize(
    ("events", "outcome", "state"),
    [
        ([], Outcome.FAILED, "before anything was done to the board"),
        (["upload", "port"], Outcome.FAILED, "before anything was done to the board"),
        (["port", "started"], Outcome.FAILED, "before anything was written"),
        (["started", "chip"], Outcome.INCOMPLETE, "the board does not start until it is flashed"),
        (["chip", "progress"], Outcome.INCOMPLETE, "the board does not start until it is flashed"),
        (["chip", "verified"], Outcome.INCOMPLETE, "the board does not start until it is flashed"),
        (["chip", "verified", "verified"], Outcome.FAILED, "when all was written and verified"),
    ],
)
def test_a_ctrl_c_says_what_it_has_left_and_hangs_up(
    monkeypatch: pytest.MonkeyPatch, events: list[str], outcome: Outcome, state: str
) -> None:
    has_begun = threading.Event()

    class Waiting(FakeClient):
        def flash(self, name: str, images: Images, report: Any, **_: Any) -> Outcome:
            for event in events:
                report({"event": event})
            has_begun.set()
            assert self.hung_up.wait(LIMIT_S)
            report({"event": "line"})  # what was on its way
            raise RequestError(Outcome.UNREACHABLE, "hung up")

    def interrupt(*_: object) -> None:
        assert has_begun.wait(LIMIT_S)
        raise KeyboardInterrupt

    monkeypatch.setattr("concurrent.futures.Future.result", interrupt)
    display = FakeDisplay()
    two = Images(FlashPlan((FlashImage(0, 1, "", "a"), FlashImage(4096, 1, "", "b"))), ())
    client = Waiting({"a": Outcome.WRITTEN})
    boards = Boards(cast("GatewayClient", client), two, display, disconnect=True)
    before = signal.getsignal(signal.SIGINT)
    assert boards.flash(["a"]) == INTERRUPTED == 130
    assert signal.getsignal(signal.SIGINT) is before
    [(name, ended, message)] = display.ends
    assert (name, ended) == ("a", outcome)
    assert state in message
    assert display.is_closed


def test_boards_that_are_done_are_not_called_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    one_is_done = threading.Event()

    class Waiting(FakeClient):
        def flash(self, name: str, images: Images, report: Any, **_: Any) -> Outcome:
            if name == "a":
                return Outcome.WRITTEN
            assert self.hung_up.wait(LIMIT_S)
            raise RequestError(Outcome.UNREACHABLE, "hung up")

    class Display(FakeDisplay):
        def ended(self, board: str, outcome: Outcome, message: str) -> None:
            super().ended(board, outcome, message)
            one_is_done.set()

    def interrupt(*_: object) -> None:
        assert one_is_done.wait(LIMIT_S)
        raise KeyboardInterrupt

    monkeypatch.setattr("concurrent.futures.Future.result", interrupt)
    display = Display()
    client = Waiting({"a": Outcome.WRITTEN, "b": Outcome.WRITTEN})
    assert boards_of(client, display).flash(["a", "b"]) == INTERRUPTED
    assert {(name, outcome) for name, outcome, _ in display.ends} == {
        ("a", Outcome.WRITTEN),
        ("b", Outcome.FAILED),
    }
