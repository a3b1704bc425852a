"""A client's place at a device: driving, muted, driving again."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from gateway.devices.device import Device
from gateway.protocol.reset import BOTH, IDLE, RESET, Lines
from gateway.protocol.serial_settings import SerialSettings
from gateway.sessions.seat import Seat
from tests.sessions.test_request_queue import SlowDevice

FAST = SerialSettings(baudrate=921600)
SLOW = SerialSettings(baudrate=9600)


class SeatBench:
    """A seat at a SlowDevice."""

    def __init__(self) -> None:
        self.device = SlowDevice()
        self.seat = Seat(cast("Device", self.device))
        self.done: list[str] = []

    def note(self, what: str) -> None:
        self.done.append(what)

    def released(self) -> None:
        """The device has gone back to where the next client expects it."""
        self.device.status = replace(
            self.device.status, settings=SerialSettings(), lines=IDLE, break_on=False
        )
        self.device.asked.clear()
        self.device._under_way.clear()


def test_a_client_that_drives_gets_what_it_asks_for() -> None:
    bench = SeatBench()
    bench.seat.write(b"x")
    bench.seat.apply(FAST, lambda: bench.note("applied"))
    assert bench.done == []
    bench.device.finish()
    bench.seat.set_lines(lambda: bench.note("lines"), dtr=True)
    bench.device.finish()
    assert bench.done == ["applied", "lines"]
    assert bench.device.asked == [b"x", FAST, ("lines", True, None)]
    assert bench.seat.status == bench.device.status


def test_a_muted_client_is_answered_and_nothing_is_done() -> None:
    bench = SeatBench()
    bench.seat.mute()
    bench.released()
    bench.seat.write(b"typed")
    bench.seat.apply(FAST, lambda: bench.note("applied"))
    bench.seat.set_lines(lambda: bench.note("lines"), rts=True)
    bench.seat.set_break(True, lambda: bench.note("break"))
    bench.seat.purge(lambda: bench.note("purge"), receive=True, transmit=True)
    assert bench.done == ["applied", "lines", "break", "purge"]
    assert bench.device.asked == []
    assert bench.seat.dropped_bytes == 5
    assert bench.seat.status.settings == FAST
    assert bench.seat.status.lines == Lines(dtr=False, rts=True)
    assert bench.seat.status.break_on


def test_what_was_asked_before_counts_as_done_when_muted_and_once() -> None:
    bench = SeatBench()
    bench.seat.purge(lambda: bench.note("purge"), receive=True, transmit=False)
    bench.seat.mute()
    assert bench.done == ["purge"]
    bench.device.finish()
    assert bench.done == ["purge"]


def test_a_muted_client_s_settings_and_raised_lines_come_back() -> None:
    bench = SeatBench()
    bench.seat.apply(FAST, lambda: None)
    bench.device.finish()
    bench.seat.set_lines(lambda: None, dtr=True, rts=True)
    bench.device.finish()
    bench.seat.mute()
    bench.released()
    bench.seat.resume()
    bench.seat.write(b"x")
    assert bench.device.asked == [FAST, ("lines", True, True), b"x"]
    for _ in range(2):
        assert (bench.seat.status.settings, bench.seat.status.lines) == (FAST, BOTH)
        bench.device.finish()
    assert bench.seat.dropped_bytes == 0


def test_a_reset_that_was_interrupted_is_not_taken_up_again() -> None:
    bench = SeatBench()
    bench.seat.set_lines(lambda: None, rts=True)
    bench.device.finish()
    assert bench.device.status.lines == RESET
    bench.seat.mute()
    bench.released()
    bench.seat.resume()
    assert bench.device.asked == []
    assert bench.seat.status.lines == IDLE


def test_a_break_comes_back_unless_it_was_ended_meanwhile() -> None:
    for before, while_muted, after in (
        (True, None, True),
        (True, False, False),
        (False, True, True),
    ):
        bench = SeatBench()
        bench.seat.set_break(before, lambda: None)
        bench.device.finish()
        bench.seat.mute()
        bench.released()
        if while_muted is not None:
            bench.seat.set_break(while_muted, lambda: None)
        assert bench.device.asked == []
        bench.seat.resume()
        assert (("break", True) in bench.device.asked) is after


def test_settings_asked_for_just_before_and_while_muted_come_back() -> None:
    bench = SeatBench()
    bench.device.refuses_settings = True  # they are not in force yet
    bench.seat.apply(FAST, lambda: None)
    bench.seat.mute()
    assert bench.seat.status.settings == FAST
    bench.released()
    bench.device.refuses_settings = False
    bench.seat.resume()
    bench.seat.apply(SLOW, lambda: bench.note("applied"))
    assert bench.device.asked == [FAST, SLOW]
    bench.device.finish()
    assert bench.done == []
    bench.device.finish()
    assert bench.done == ["applied"]
    assert bench.seat.status.settings == SLOW


def test_settings_that_the_device_refuses_are_tried_once() -> None:
    bench = SeatBench()
    bench.seat.mute()
    bench.seat.apply(FAST, lambda: None)
    bench.device.refuses_settings = True
    bench.seat.resume()
    bench.device.finish()
    assert bench.device.asked == [FAST]
    assert bench.seat.status.settings == SerialSettings()


def test_a_client_that_is_muted_again_while_its_settings_come_back_stays_muted() -> None:
    bench = SeatBench()
    bench.seat.mute()
    bench.seat.apply(FAST, lambda: None)
    bench.seat.resume()
    bench.seat.mute()
    bench.device.finish()
    bench.seat.write(b"x")
    assert bench.device.asked == [FAST]
    assert bench.seat.status.settings == FAST
