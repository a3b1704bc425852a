"""Whether and when a new client gets what the board had said before it came."""

from __future__ import annotations

import pytest

from gateway.protocol.access_server import AccessServer, OutputSuspended, SerialData
from gateway.session.replay import (
    COMMANDS,
    LONGEST_PAUSE_S,
    LONGEST_S,
    MOST_HELD_BYTES,
    MOST_PAST_BYTES,
    QUIET_S,
    SETTING_UP_S,
    Replay,
)
from tests.support import client_sequences as clients
from tests.support.client_sequences import ACKNOWLEDGEMENT_POLL_S, Sent
from tests.support.tcp_client import com_port
from tests.support.telnet_wire import RFC2217_CLIENT

PAST = b"Guru Meditation Error\n"
SET_BAUDRATE, SET_CONTROL, PURGE = 1, 5, 12
BAUD_115200 = com_port(SET_BAUDRATE, (115200).to_bytes(4, "big"))
PURGE_RECEIVED = com_port(PURGE, b"\x01")


class Client:
    """What one client sends, when, and what it gets; the clock stands at 0 when it comes."""

    def __init__(self) -> None:
        self.replay = Replay(PAST, 0.0)
        self.now = 0.0
        self.received = b""
        self._conversation = AccessServer("gateway under test")

    def send(self, *wire: bytes) -> None:
        for data in wire:
            events = self._conversation.receive_data(data)
            if not self.replay.is_over:
                self.received += self.replay.client_sent(events, self.now)

    def wait(self, seconds: float) -> None:
        until = self.now + seconds
        while not self.replay.is_over and self.replay.deadline <= until:
            self.now = max(self.now, self.replay.deadline)
            self.received += self.replay.due(self.now)
        self.now = until

    def play(self, *sequences: tuple[Sent, ...], round_trip_s: float) -> None:
        """As pyserial plays them: each command waits for the answer to the one before."""
        for sent in (each for sequence in sequences for each in sequence):
            self.wait(sent.sleep_s)
            if sent.control is None:
                self.send(PURGE_RECEIVED)
            else:
                self.send(com_port(SET_CONTROL, bytes([sent.control])))
            self.wait(round_trip_s + ACKNOWLEDGEMENT_POLL_S)

    def open(self, round_trip_s: float) -> None:
        """What pyserial does before it moves the lines."""
        self.send(RFC2217_CLIENT)
        self.wait(round_trip_s + ACKNOWLEDGEMENT_POLL_S)
        for _ in range(4):
            self.send(BAUD_115200)
            self.wait(round_trip_s + ACKNOWLEDGEMENT_POLL_S)


def test_a_client_that_says_nothing_gets_the_past_after_a_moment() -> None:
    client = Client()
    client.wait(QUIET_S - 0.01)
    assert client.received == b""
    client.wait(0.02)
    assert client.received == PAST
    assert client.replay.is_over


def test_what_the_board_says_meanwhile_comes_behind_the_past_and_once() -> None:
    client = Client()
    assert client.replay.board_sent(b"reboot") == b""
    client.wait(0.1)
    assert client.replay.board_sent(b"ing\n") == b""
    client.wait(QUIET_S)
    assert client.received == PAST + b"rebooting\n"


MONITORS = {
    "pyserial": [clients.OPEN],
    "pyserial with both lines off": [clients.OPEN_LINES_OFF],
    "a script that switches both lines off": [clients.OPEN, clients.SCRIPT_LINES_OFF],
    "esp-idf-monitor": [clients.MONITOR_ATTACH],
}
FLASHERS = {
    "esptool": [clients.ESPTOOL_TWO_ATTEMPTS],
    "esptool, hard reset": [clients.OPEN, clients.ESPTOOL_HARD_DTR_ON],
    "esptool, usb reset": [clients.OPEN, clients.ESPTOOL_USB_JTAG],
    "esptool, custom": [clients.OPEN, clients.CUSTOM_CLASSIC],
    "esp-idf-monitor that resets": [clients.MONITOR_ATTACH, clients.MONITOR_HARD],
    "into the bootloader": [clients.OPEN, clients.MONITOR_BOOTLOADER_ESP32],
}


@pytest.mark.parametrize("round_trip_s", [0.0, 0.1, 0.4, 1.0])
@pytest.mark.parametrize("monitor", MONITORS)
def test_a_monitor_gets_the_past_when_it_has_opened_its_port(
    monitor: str, round_trip_s: float
) -> None:
    client = Client()
    client.open(round_trip_s)
    client.play(*MONITORS[monitor], round_trip_s=round_trip_s)
    assert client.received == b""
    client.replay.board_sent(b"and on\n")
    client.wait(LONGEST_PAUSE_S + QUIET_S)
    assert client.received == PAST + b"and on\n"


@pytest.mark.parametrize("round_trip_s", [0.0, 0.1, 0.4, 1.0])
@pytest.mark.parametrize("flasher", FLASHERS)
def test_who_resets_the_board_gets_nothing_that_was_before(
    flasher: str, round_trip_s: float
) -> None:
    client = Client()
    client.open(round_trip_s)
    client.play(*FLASHERS[flasher], round_trip_s=round_trip_s)
    client.send(b"\xc0\x00\x08")
    client.wait(60.0)
    assert client.replay.is_over
    assert client.received == b""


def test_who_sends_data_gets_what_the_board_says_from_its_arrival_on() -> None:
    client = Client()
    client.replay.board_sent(b"new")
    client.send(RFC2217_CLIENT + BAUD_115200 + b"\xc0\x00\x08")
    assert client.received == b"new"
    client.wait(60.0)
    assert client.received == b"new"


def test_what_a_client_purges_is_no_answer_for_it_but_past_for_a_person() -> None:
    flasher, person = Client(), Client()
    for client in (flasher, person):
        client.replay.board_sent(b"old\n")
        client.send(RFC2217_CLIENT, PURGE_RECEIVED)
        client.replay.board_sent(b"new\n")
    flasher.send(b"\xc0\x00\x08")
    assert flasher.received == b"new\n"
    person.wait(QUIET_S)
    assert person.received == PAST + b"old\nnew\n"


@pytest.mark.parametrize("command", [com_port(8), com_port(SET_CONTROL, b"\x05")])
def test_who_suspends_output_or_sends_a_break_gets_nothing_that_was_before(command: bytes) -> None:
    client = Client()
    client.replay.board_sent(b"new")
    client.send(RFC2217_CLIENT, command)
    assert client.replay.is_over
    assert client.received == b"new"


def test_a_client_that_ends_in_the_middle_of_a_reset_gets_nothing_that_was_before() -> None:
    client = Client()
    client.open(0.0)
    client.play(clients.OPEN, round_trip_s=0.0)
    client.send(com_port(SET_CONTROL, b"\x09"))  # both lines on, then DTR off: of a reset, or not
    client.wait(60.0)
    assert client.received == b""


def test_a_client_that_sets_up_its_port_has_more_time() -> None:
    client = Client()
    client.send(RFC2217_CLIENT, BAUD_115200)
    client.wait(SETTING_UP_S - 0.01)
    assert client.received == b""
    client.wait(0.02)
    assert client.received == PAST


@pytest.mark.parametrize("pause_s", [0.1, 0.4, 1.0])
def test_a_client_that_is_never_quiet_gets_the_past_in_the_end(pause_s: float) -> None:
    client = Client()
    longest_s = LONGEST_S + COMMANDS * pause_s
    while not client.received:
        assert client.now < longest_s + 0.1
        client.send(RFC2217_CLIENT + BAUD_115200)
        client.wait(pause_s)
    assert client.now > longest_s - 0.1
    assert client.received == PAST


def test_what_is_held_is_bounded() -> None:
    client = Client()
    assert client.replay.board_sent(bytes(MOST_HELD_BYTES)) == b""
    assert client.replay.board_sent(b"x") == PAST + bytes(MOST_HELD_BYTES) + b"x"
    assert client.replay.is_over


def test_what_is_replayed_is_bounded() -> None:
    replay = Replay(b"old" + bytes(MOST_PAST_BYTES), 0.0)
    for _ in range(3):
        replay.board_sent(b"held")
        purge = AccessServer("gateway under test")
        replay.client_sent(purge.receive_data(RFC2217_CLIENT + PURGE_RECEIVED), 0.0)
    assert replay.due(LONGEST_S) == bytes(MOST_PAST_BYTES - 12) + 3 * b"held"


def test_a_client_that_is_closed_before_gets_it_first() -> None:
    replay = Replay(PAST, 0.0)
    replay.board_sent(b"new\n")
    assert replay.end() == PAST + b"new\n"
    assert replay.is_over


def test_events_are_looked_at_in_their_order() -> None:
    replay = Replay(PAST, 0.0)
    replay.board_sent(b"new")
    assert replay.client_sent([SerialData(b"x"), OutputSuspended(suspended=True)], 0.0) == b"new"
