"""The real service on ptys that tests/shim makes serial ports of: order, and who waits for whom.

The shim's log is what the kernel was asked for, in order; it can hold a call up for as long as the
test wants, as a device does that has just vanished.
"""

from __future__ import annotations

import os
import struct
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from gateway.protocol.rfc2217 import Control, Linestate, Modemstate
from tests.support.bare_pty import BarePty
from tests.support.processes import Service
from tests.support.shim import Shim, TtyCall, build_shim
from tests.support.tcp_client import TcpClient, com_port
from tests.support.telnet_wire import COM_PORT, do, will

SET_BAUDRATE, SET_CONTROL, NOTIFY_LINESTATE, NOTIFY_MODEMSTATE = 1, 5, 6, 7
SET_LINESTATE_MASK = 10
#: So slow that 20 KB need minutes: a drain does not end before the test wants it to.
SLOW_BAUDRATE = 600
HOUR_MS = 3_600_000


class Lab:
    """The service on these ttys, by name; a context manager. All ports are open when it begins."""

    def __init__(
        self, folder: Path, shim: Shim, boards: dict[str, BarePty], options: str = ""
    ) -> None:
        config = folder / "gateway.yaml"
        ports = "".join(
            f"  - {{name: {name}, tcp: 0, device: {board.path}}}\n"
            for name, board in boards.items()
        )
        config.write_text(f"defaults: {{grace_s: 0{options}}}\nports:\n{ports}")
        self.service = Service(config, shim.env())
        self.tcp_ports = dict.fromkeys(boards, 0)

    def __enter__(self) -> Self:
        self.service.start()
        try:
            for name in self.tcp_ports:
                listening = rf'"device": "{name}".*"tcp_port": (\d+), "event": "listen_started"'
                self.tcp_ports[name] = int(self.service.wait_for_line(listening)[1])
                self.wait_until_opened(name, 1)
        except BaseException:
            self.service.kill()
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        self.service.__exit__(*error)

    def wait_until_opened(self, name: str, times: int) -> None:
        self.service.wait_for_line(rf'"device": "{name}".*"event": "device_opened"', 30.0, times)

    async def client(self, name: str) -> TcpClient:
        client = await TcpClient.connect(self.tcp_ports[name])
        await client.send(will(COM_PORT))
        await client.receive_wire(do(COM_PORT))
        return client


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Shim:
    return build_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def shim(built: Shim, tmp_path: Path) -> Iterator[Shim]:
    shim = Shim(built.library, tmp_path)
    yield shim
    shim.set_delay_ms(0)


def set_baudrate(baudrate: int) -> bytes:
    return com_port(SET_BAUDRATE, struct.pack("!I", baudrate))


def baudrate_set(baudrate: int) -> bytes:
    return com_port(SET_BAUDRATE + 100, struct.pack("!I", baudrate))


def control(code: Control, *, answer: bool = False) -> bytes:
    return com_port(SET_CONTROL + (100 if answer else 0), bytes([code]))


def is_setting(call: TtyCall) -> bool:
    return call.name == "tcsetattr" or call.name.startswith("TCSETS")


def written_bytes(calls: list[TtyCall]) -> int:
    return sum(int(call.args) for call in calls if call.name == "write" and call.errno is None)


async def test_accepted_data_leaves_at_the_old_rate(tmp_path: Path, shim: Shim) -> None:
    with (
        BarePty() as board,
        Lab(tmp_path, shim, {"desk": board}, f", baudrate: {SLOW_BAUDRATE}") as lab,
        await lab.client("desk") as client,
    ):
        begun = len(shim.calls())
        shim.set_unsent_bytes(20_000)
        await client.send(b"x" * 20_000 + set_baudrate(9600) + b"y")
        board.received(20_000)
        shim.wait_for_call("TIOCOUTQ", "20000")
        shim.set_unsent_bytes(0)
        await client.receive_wire(baudrate_set(9600))
        assert board.received(1) == b"y"
        calls = shim.calls()[begun:]
        set_at = next(index for index, call in enumerate(calls) if is_setting(call))
        assert written_bytes(calls[:set_at]) == 20_000
        before = [call.args for call in calls[:set_at] if call.name == "TIOCOUTQ"]
        assert before == ["20000", "0"], "the driver has been asked until it had sent all"
        assert written_bytes(calls[set_at:]) == 1


async def test_a_board_that_reads_slowly_keeps_the_old_rate_until_it_has_all(
    tmp_path: Path, shim: Shim
) -> None:
    with (
        BarePty() as board,
        Lab(tmp_path, shim, {"desk": board}) as lab,
        await lab.client("desk") as client,
    ):
        begun = len(shim.calls())
        await client.send(b"x" * 300_000 + set_baudrate(9600))
        board.received(100_000)
        assert not any(map(is_setting, shim.calls()[begun:]))
        board.received(200_000)
        await client.receive_wire(baudrate_set(9600))
        calls = shim.calls()[begun:]
        set_at = next(index for index, call in enumerate(calls) if is_setting(call))
        assert written_bytes(calls[:set_at]) == 300_000


async def test_a_port_whose_driver_is_slow_delays_no_other(tmp_path: Path, shim: Shim) -> None:
    with (
        BarePty() as slow,
        BarePty() as other,
        Lab(tmp_path, shim, {"slow": slow, "other": other}) as lab,
        await lab.client("slow") as waiting,
        await lab.client("other") as client,
    ):
        shim.set_delay_ms(HOUR_MS, slow.path)
        await waiting.send(set_baudrate(9600))
        begun = shim.wait_for_call("blocked").time_ns
        await client.send(set_baudrate(19200) + control(Control.DTR_ON) + b"ping")
        await client.receive_wire(baudrate_set(19200) + control(Control.DTR_ON, answer=True))
        assert other.received(4) == b"ping"
        os.write(other.master, b"pong")
        await client.receive_wire(b"pong")
        assert baudrate_set(9600) not in waiting.received
        shim.set_delay_ms(0)
        await waiting.receive_wire(baudrate_set(9600))
        calls = [call for call in shim.calls() if call.time_ns > begun]
        settings = [call.path for call in calls if is_setting(call)]
        assert settings.index(other.path) < settings.index(slow.path)


async def test_a_call_that_does_not_return_breaks_its_device_only_and_it_comes_back(
    tmp_path: Path, shim: Shim
) -> None:
    reason = "the kernel did not answer for 8 s"
    with (
        BarePty() as stuck,
        BarePty() as other,
        Lab(tmp_path, shim, {"stuck": stuck, "other": other}) as lab,
        await lab.client("other") as client,
    ):
        with await lab.client("stuck") as lost:
            shim.set_delay_ms(HOUR_MS, stuck.path)
            await lost.send(set_baudrate(9600))
            await lost.receive_to_end()
            assert baudrate_set(9600) not in lost.received
        lab.service.wait_for_line(rf'"device": "stuck", "reason": "{reason}".*"device_lost"')
        lab.service.wait_for_line(rf'"reason": "{reason}".*"client_disconnected"')
        with await TcpClient.connect(lab.tcp_ports["stuck"]) as refused:
            assert (await refused.receive_to_end()).startswith(b"stuck: broken: ")
        await client.send(set_baudrate(19200))
        await client.receive_wire(baudrate_set(19200))
        shim.set_delay_ms(0)
        lab.wait_until_opened("stuck", 2)
        with await lab.client("stuck") as back:
            await back.send(set_baudrate(9600) + b"back")
            await back.receive_wire(baudrate_set(9600))
            assert stuck.received(4) == b"back"


async def test_errors_and_pulses_that_the_driver_counts_are_told(
    tmp_path: Path, shim: Shim
) -> None:
    shim.set_modem_bits(termios.TIOCM_CTS)
    with (
        BarePty() as board,
        Lab(tmp_path, shim, {"desk": board}) as lab,
        await lab.client("desk") as client,
    ):
        first = com_port(NOTIFY_MODEMSTATE + 100, bytes([Modemstate.CTS]))
        await client.receive_wire(first)
        wanted = Linestate.BREAK | Linestate.FRAMING_ERROR | Linestate.OVERRUN
        await client.send(com_port(SET_LINESTATE_MASK, bytes([wanted])))
        await client.receive_wire(com_port(SET_LINESTATE_MASK + 100, bytes([wanted])))
        # Asked for once, so that the counters before are known.
        await client.send(com_port(NOTIFY_LINESTATE, b"\0"))
        await client.receive_wire(com_port(NOTIFY_LINESTATE + 100, b"\x60"))
        shim.set_counters(0, 2, 0, 0, 0, 0, 0, 1, 1, 1)
        pulse = Modemstate.CTS | Modemstate.DELTA_DSR
        await client.receive_wire(com_port(NOTIFY_MODEMSTATE + 100, bytes([pulse])))
        errors = Linestate.BREAK | Linestate.OVERRUN
        await client.receive_wire(com_port(NOTIFY_LINESTATE + 100, bytes([errors])))
