"""What a client is told of the board's lines and of errors on the wire (RFC 2217 section 4)."""

from __future__ import annotations

import re
import termios
from pathlib import Path

import pytest

from gateway.protocol.rfc2217 import Linestate, Modemstate
from tests.support.com_port import (
    FIRST_STATE,
    GET_LINESTATE,
    GET_MODEMSTATE,
    RESUME,
    SUSPEND,
    linestate,
    linestate_mask,
    modemstate,
    modemstate_mask,
)
from tests.support.gateway_end import deliver
from tests.support.telnet_wire import COM_PORT, RFC2217_CLIENT, wont
from tests.support.world import Client, World, turns, until, world

CTS, DSR, CD, RI = Modemstate.CTS, Modemstate.DSR, Modemstate.CD, Modemstate.RI
DELTA_CTS = Modemstate.DELTA_CTS
EMPTY = Linestate.TRANSMIT_HOLDING_EMPTY | Linestate.TRANSMIT_SHIFT_EMPTY

#: Lines and errors are looked at so often.
INTERVAL_S = 0.25

#: Where a driver counts what (struct serial_icounter_struct).
COUNTERS = ("cts", "dsr", "ri", "cd", "rx", "tx", "frame", "overrun", "parity", "brk")


def counters(**counted: int) -> tuple[int, ...]:
    return tuple(counted.get(name, 0) for name in COUNTERS)


def notifications(client: Client) -> bytes:
    """All that the client was told, and forgotten here."""
    told = b"".join(
        re.findall(rb"\xff\xfa,[\x6a\x6b](?:[^\xff]|\xff\xff)\xff\xf0", client.received, re.DOTALL)
    )
    client.received.clear()
    return told


async def told_within(w: World, client: Client, seconds: float) -> bytes:
    """What the client is told while time passes."""
    await w.pass_time(seconds)
    await client.settled()  # its answer is behind what was told
    return notifications(client)


async def informed(w: World) -> Client:
    """A client that was told the first modem state, which has no bit set, and reads it."""
    w.board.calls.counters = counters()
    client = await w.client()
    await client.receive_wire(FIRST_STATE)
    client.received.clear()
    return client


def looks(w: World) -> list[str]:
    """Grows by one with each read of the board's lines from now on."""
    seen: list[str] = []

    def note(name: str) -> None:
        if name == "states":
            seen.append(name)

    w.board.calls.on_call = note
    return seen


async def test_the_first_modem_state_is_told_as_it_is_even_if_no_bit_is_set(tmp_path: Path) -> None:
    """pyserial fails until it knows the state."""
    async with world(tmp_path) as w:
        w.board.calls.counters = counters(cts=9)
        client = await w.client()
        await client.receive_wire(FIRST_STATE)
        assert await told_within(w, client, 10.0) == FIRST_STATE


async def test_each_change_of_a_line_is_told_once_with_its_delta(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await informed(w)
        for bits, told in (
            (termios.TIOCM_CTS, CTS | DELTA_CTS),
            (termios.TIOCM_CTS | termios.TIOCM_CD, CTS | CD | Modemstate.DELTA_CD),
            (termios.TIOCM_CD, CD | DELTA_CTS),
            (termios.TIOCM_RI, RI | Modemstate.DELTA_CD),
            (0, Modemstate.TRAILING_EDGE_RI),
        ):
            w.board.calls.modem_bits = bits
            assert await told_within(w, client, 4 * INTERVAL_S) == modemstate(told)


async def test_a_pulse_between_two_looks_is_told_if_the_driver_counts_it(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await informed(w)
        w.board.calls.counters = counters(cts=2, dsr=4)
        told = DELTA_CTS | Modemstate.DELTA_DSR
        assert await told_within(w, client, 1.0) == modemstate(told)


async def test_a_mask_lets_only_its_bits_through_and_none_ends_the_looks(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await informed(w)
        await client.send(modemstate_mask(DSR | Modemstate.DELTA_DSR))
        await client.settled()
        w.board.calls.modem_bits = termios.TIOCM_CTS
        assert await told_within(w, client, 1.0) == b""
        w.board.calls.modem_bits |= termios.TIOCM_DSR
        assert await told_within(w, client, 1.0) == modemstate(DSR | Modemstate.DELTA_DSR)
        await client.send(modemstate_mask(0))
        await client.settled()
        seen = looks(w)
        w.board.calls.modem_bits = 0
        assert (await told_within(w, client, 10.0), seen) == (b"", [])
        await client.send(modemstate_mask(255))  # goes on from what was told last
        told = modemstate(DELTA_CTS | Modemstate.DELTA_DSR)
        await client.receive_wire(told)
        assert notifications(client) == told


async def test_a_mask_of_none_leaves_the_state_to_be_asked_for(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await informed(w)
        await client.send(modemstate_mask(0))
        await client.settled()
        w.board.calls.modem_bits = termios.TIOCM_CTS
        await client.send(GET_MODEMSTATE)
        await client.receive_wire(modemstate(CTS | DELTA_CTS))
        await client.send(GET_MODEMSTATE)
        await client.receive_wire(modemstate(CTS))


async def test_the_line_state_tells_whether_bytes_wait(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await informed(w)
        await client.send(GET_LINESTATE)
        await client.receive_wire(linestate(EMPTY))
        w.board.calls.unsent_bytes = 7  # in the driver
        await client.send(GET_LINESTATE)
        await client.receive_wire(linestate(Linestate(0)))


async def test_errors_on_the_wire_are_told_to_clients_that_asked_for_them(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await informed(w)
        w.board.calls.counters = counters(brk=3, parity=5)
        await client.send(linestate_mask(Linestate.BREAK | Linestate.OVERRUN))
        await client.settled()
        assert await told_within(w, client, 1.0) == b""  # errors of before were not asked for
        w.board.calls.counters = counters(brk=4, parity=9)
        assert await told_within(w, client, 1.0) == linestate(Linestate.BREAK)
        w.board.calls.counters = counters(brk=4, parity=9, overrun=1)
        await client.send(GET_LINESTATE)  # with what has happened since, whatever the mask
        await client.receive_wire(linestate(EMPTY | Linestate.OVERRUN))
        client.received.clear()
        assert await told_within(w, client, 1.0) == b""  # told already
        await client.send(linestate_mask(0) + modemstate_mask(0))
        await client.settled()
        seen = looks(w)
        assert (await told_within(w, client, 10.0), seen) == (b"", [])
        w.board.calls.counters = counters(brk=9)  # while they are not asked for
        await client.send(linestate_mask(Linestate.BREAK))
        assert await told_within(w, client, 1.0) == b""


async def test_counters_of_a_board_that_was_plugged_in_again_are_no_errors(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await informed(w)
        w.board.calls.counters = counters(brk=9, cts=9)
        await client.send(linestate_mask(255))
        await told_within(w, client, 1.0)
        w.board.calls.counters = counters()
        assert await told_within(w, client, 1.0) == b""


async def test_states_are_read_one_at_a_time_however_often_asked_for(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await informed(w)
        await client.send(modemstate_mask(0))
        await client.settled()
        w.board.calls.modem_bits = termios.TIOCM_CTS
        w.board.calls.hang("states")
        seen = looks(w)
        await deliver(client, GET_MODEMSTATE * 1000)
        await turns(50)
        assert len(seen) == 1
        w.board.calls.answer()
        await client.receive(lambda: client.received.count(modemstate(CTS)) == 999)
        assert client.received.count(modemstate(CTS | DELTA_CTS)) == 1


async def test_looks_do_not_pile_up_behind_a_driver_that_takes_its_time(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await informed(w)
        w.board.calls.hang("states")
        seen = looks(w)
        await w.pass_time(INTERVAL_S)
        await client.send(modemstate_mask(0) + modemstate_mask(255) + linestate_mask(255))
        await w.pass_time(2.0)
        assert len(seen) == 1
        w.board.calls.modem_bits = termios.TIOCM_CTS
        w.board.calls.answer()
        await client.receive_wire(modemstate(CTS | DELTA_CTS))
        await turns(50)
        assert len(seen) == 1


@pytest.mark.parametrize("ends", [wont(COM_PORT), None])
async def test_looks_end_with_com_port_option_and_with_the_client(
    tmp_path: Path, ends: bytes | None
) -> None:
    async with world(tmp_path) as w:
        client = await informed(w)
        if ends is None:
            client.close()
            await w.until_idle()
        else:
            await deliver(client, ends)
        await turns(20)
        seen = looks(w)
        await w.pass_time(10.0)
        assert seen == []


async def test_a_client_without_com_port_option_is_told_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        seen = looks(w)
        client = await w.connect(b"hello\xff\xf1" + modemstate_mask(255))
        await w.board.reads(b"hello")
        await w.pass_time(10.0)
        assert seen == []
        await client.send(RFC2217_CLIENT)
        await client.receive_wire(FIRST_STATE)
        assert notifications(client) == FIRST_STATE


async def test_what_happens_while_output_is_suspended_is_told_afterwards(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await informed(w)
        await client.send(linestate_mask(Linestate.FRAMING_ERROR))
        await client.settled()
        await w.pass_time(1.0)
        await deliver(client, SUSPEND)
        await turns(20)
        client.received.clear()
        seen = looks(w)
        w.board.calls.counters = counters(cts=2, frame=1)
        await w.pass_time(10.0)
        assert (client.has_more(), seen) == (False, [])
        await client.send(RESUME)
        await client.receive_wire(linestate(Linestate.FRAMING_ERROR))
        await until(lambda: modemstate(DELTA_CTS) in client.received)
