from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from gateway.protocol.reset import BOTH, Lines
from gateway.protocol.serial_settings import SerialSettings
from gateway.tty.away_port import HELD_HIGH_BYTES, AwayPort
from gateway.tty.serial_states import NO_STATES


def nothing() -> None:
    pass


class RecordingPort(AwayPort):
    """An open port that writes down what it is asked for."""

    def __init__(self, settings: SerialSettings) -> None:
        super().__init__(settings, full=nothing, room=nothing, dropped=lambda _: None)
        self.calls: list[object] = []

    def write(self, data: bytes) -> None:
        self.calls.append(data)

    def apply(self, settings: SerialSettings, done: Callable[[SerialSettings], None]) -> None:
        self.calls.append(settings)
        done(settings)

    def set_lines(self, lines: Lines, done: Callable[[], None]) -> None:
        self.calls.append(lines)
        done()

    def set_break(self, on: bool, done: Callable[[], None]) -> None:
        self.calls.append(("break", on))
        done()

    def pause_reading(self) -> None:
        self.calls.append("pause")


def away(full: Callable[[], None] = nothing, room: Callable[[], None] = nothing) -> AwayPort:
    return AwayPort(SerialSettings(), full=full, room=room, dropped=lambda _: None)


def handed_over(port: AwayPort) -> list[object]:
    back = RecordingPort(SerialSettings())
    port.hand_over_settings(back)
    port.hand_over(back)
    return back.calls


def test_every_request_is_done_at_once() -> None:
    port = away()
    done: list[object] = []
    fast = replace(SerialSettings(), baudrate=921600)
    port.apply(fast, done.append)
    port.set_lines(BOTH, lambda: done.append("lines"))
    port.set_break(True, lambda: done.append("break"))
    port.purge(receive=True, transmit=True, done=lambda: done.append("purge"))
    port.when_sent(lambda: done.append("sent"))
    port.read_states(done.append)
    assert done == [fast, "lines", "break", "purge", "sent", NO_STATES]
    assert port.settings == fast


def test_last_settings_and_all_bytes_are_handed_over_in_that_order() -> None:
    port = away()
    port.write(b"one ")
    for baudrate in (230400, 921600):
        port.apply(replace(SerialSettings(), baudrate=baudrate), lambda _: None)
    port.write(b"two")
    assert handed_over(port) == [replace(SerialSettings(), baudrate=921600), b"one two"]


def test_nothing_is_handed_over_when_nothing_was_asked_for() -> None:
    assert handed_over(away()) == []


def test_purged_bytes_are_not_handed_over() -> None:
    port = away()
    port.write(b"old")
    port.purge(receive=True, transmit=False, done=lambda: None)
    assert port.unsent_bytes == 3
    port.purge(receive=False, transmit=True, done=lambda: None)
    port.write(b"new")
    assert handed_over(port) == [b"new"]


def test_a_break_and_a_pause_go_on() -> None:
    port = away()
    port.pause_reading()
    port.set_break(True, lambda: None)
    assert handed_over(port) == ["pause", ("break", True)]
    port.resume_reading()
    port.set_break(False, lambda: None)
    assert handed_over(port) == []


def test_it_says_when_it_holds_more_than_it_should() -> None:
    full: list[bool] = []
    port = away(lambda: full.append(True))
    port.write(bytes(HELD_HIGH_BYTES))
    assert not full
    port.write(b"x")
    assert full


def test_a_purge_makes_room() -> None:
    room: list[bool] = []
    port = away(room=lambda: room.append(True))
    port.write(bytes(HELD_HIGH_BYTES + 1))
    port.purge(receive=True, transmit=False, done=nothing)
    assert not room
    port.purge(receive=False, transmit=True, done=nothing)
    assert room
