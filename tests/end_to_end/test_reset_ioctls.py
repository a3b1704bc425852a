"""Each strategy as it reaches a tty: the service on a pty with modem lines, a client's resets."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import serial
from esp_pylib.serial_reset import (
    classic_bootloader_reset,
    hard_reset,
    usb_jtag_bootloader_reset,
)

from tests.support.bare_pty import BarePty
from tests.support.processes import Service
from tests.support.shim import Shim, TtyCall, build_shim

#: The lines as pairs of DTR and RTS.
Pair = tuple[bool, bool]
IDLE, BOTH, RESET, STRAP = (False, False), (True, True), (False, True), (True, False)

#: What a reset into the bootloader and a hard reset behind it put on the lines, opening first.
#: A pause, in seconds, is the least that lies between two of them.
CHANGES: dict[str, tuple[Pair | float, ...]] = {
    "classic": (IDLE, STRAP, BOTH, RESET, 0.05, STRAP, 0.05, IDLE, RESET, 0.05, IDLE),
    "usb-jtag": (IDLE, STRAP, 0.1, BOTH, RESET, 0.1, IDLE, RESET, 0.2, IDLE),
    "touch-1200": (BOTH, IDLE, 0.35, BOTH, RESET, 0.2, IDLE, BOTH),
    "usb-otg": (
        *(BOTH, RESET, 0.1, STRAP, 0.05, IDLE),
        *(0.5, RESET, 0.05, BOTH, 0.05, STRAP, 0.05, IDLE),
        *(0.3, BOTH, 0.05, IDLE, 0.35, BOTH),
        *(RESET, 0.2, IDLE, BOTH),
    ),
    "none": (IDLE, STRAP, BOTH, RESET, BOTH, STRAP, IDLE, RESET, IDLE),
    "D0|R1|W0.2|U1,0|W0.1|D0": (IDLE, RESET, 0.2, STRAP, 0.1, IDLE, RESET, 0.1, IDLE),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Shim:
    return build_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def shim(built: Shim, tmp_path: Path) -> Shim:
    return Shim(built.library, tmp_path)


@pytest.fixture
def board() -> Iterator[BarePty]:
    with BarePty() as board:
        yield board


def serve(shim: Shim, board: BarePty, reset: str, folder: Path, rest: str = "auto") -> Service:
    config = folder / "gateway.yaml"
    keys = f"reset: '{reset}', rest: {rest}"
    port = f"  - {{name: desk, tcp: 0, device: {board.path}, {keys}}}\n"
    config.write_text("ports:\n" + port)
    return Service(config, shim.env())


def client_of(service: Service, baudrate: int = 115200, scheme: str = "rfc2217") -> serial.Serial:
    found = service.wait_for_line(r'"tcp_port": (\d+), "event": "listen_started"')
    service.wait_for_line(r'"event": "device_opened"')
    return serial.serial_for_url(f"{scheme}://127.0.0.1:{found[1]}", baudrate=baudrate)


def line_calls(shim: Shim) -> list[TtyCall]:
    """What has moved a line, opening aside: that raises both."""
    return [call for call in shim.calls() if call.name in {"TIOCMSET", "TIOCMBIS", "TIOCMBIC"}]


@pytest.mark.parametrize("reset", CHANGES)
def test_a_strategy_s_lines_move_in_single_calls_with_their_pauses(
    shim: Shim, board: BarePty, tmp_path: Path, reset: str
) -> None:
    with serve(shim, board, reset, tmp_path) as service:
        with client_of(service) as client:
            classic_bootloader_reset(client)
            hard_reset(client)
        service.wait_for_line('"event": "client_disconnected"')
    calls = line_calls(shim)
    wanted = CHANGES[reset]
    assert {call.name for call in calls} == {"TIOCMSET"}
    assert [(call.dtr, call.rts) for call in calls] == [
        each for each in wanted if isinstance(each, tuple)
    ]
    done = iter(calls)
    before = call = next(done)
    least_s = 0.0
    for each in wanted[1:]:
        if isinstance(each, float):
            least_s = each
        else:
            before, call = call, next(done)
            assert call.time_ns - before.time_ns >= (least_s - 0.001) * 1e9
            least_s = 0.0


def test_a_client_that_plays_usb_jtag_itself_is_followed(
    shim: Shim, board: BarePty, tmp_path: Path
) -> None:
    with serve(shim, board, "usb-jtag", tmp_path) as service:
        with client_of(service) as client:
            usb_jtag_bootloader_reset(client)
        service.wait_for_line('"event": "client_disconnected"')
    assert [(call.dtr, call.rts) for call in line_calls(shim)] == [IDLE, STRAP, BOTH, RESET, IDLE]


#: Of each strategy and lines at rest: what a client that opens its port at 1200 baud and closes it
#: puts on the wire from its settings on.
TOUCHED: dict[tuple[str, str], list[Pair]] = {
    ("usb-otg", "auto"): [IDLE, BOTH],
    ("touch-1200", "auto"): [IDLE, BOTH],
    ("none", "{dtr: on, rts: on}"): [IDLE, BOTH],
    ("none", "{dtr: on, rts: off}"): [BOTH, IDLE, STRAP],
    ("none", "auto"): [STRAP, BOTH, IDLE],
    ("classic", "auto"): [STRAP, BOTH, IDLE],
}


@pytest.mark.parametrize(("reset", "rest"), TOUCHED)
def test_a_touch_drops_dtr_at_1200_baud_for_long_enough(
    shim: Shim, board: BarePty, tmp_path: Path, reset: str, rest: str
) -> None:
    with serve(shim, board, reset, tmp_path, rest) as service:
        client_of(service, 1200).close()
        service.wait_for_line('"event": "client_disconnected"')
    calls = [call for call in shim.calls() if call.name in {"tcsetattr", "TIOCMSET"}]
    # Raw mode, the port's own settings, then the client's and in the end the port's again.
    _, _, set_1200, set_back = [
        index for index, call in enumerate(calls) if call.name == "tcsetattr"
    ]
    touch = calls[set_1200 + 1 : set_back]
    assert [(call.dtr, call.rts) for call in touch] == TOUCHED[reset, rest]
    dropped = next(index for index, call in enumerate(touch) if not call.dtr)
    following = [*touch[dropped + 1 :], calls[set_back]][0]
    assert following.time_ns - touch[dropped].time_ns >= 0.349e9


@pytest.mark.parametrize("rest", ["{dtr: on, rts: on}", "{dtr: on, rts: off}", "{rts: off}"])
def test_lines_rest_where_they_shall_before_between_and_behind_clients(
    shim: Shim, board: BarePty, tmp_path: Path, rest: str
) -> None:
    at_rest = {"{dtr: on, rts: on}": BOTH, "{dtr: on, rts: off}": STRAP, "{rts: off}": IDLE}[rest]
    with serve(shim, board, "none", tmp_path, rest) as service:
        for _ in range(2):
            client_of(service).close()
        service.wait_for_line('"event": "client_disconnected"')
    states = [(call.dtr, call.rts) for call in line_calls(shim)]
    assert states[0] == at_rest
    assert states[-1] == at_rest
    assert shim.calls("close")[-1].dtr == at_rest[0]


@pytest.mark.parametrize("scheme", ["rfc2217", "gateway"])
def test_the_entry_of_cc2538_bsl_reaches_the_lines_of_a_stick(
    shim: Shim, board: BarePty, tmp_path: Path, scheme: str
) -> None:
    with serve(shim, board, "none", tmp_path) as service:
        with client_of(service, scheme=scheme) as client:
            # invoke_bootloader() of cc2538-bsl.py: DTR is the boot pin, RTS the reset pin.
            client.dtr = True
            client.rts = False
            client.rts = True
            client.rts = False
            time.sleep(0.002)
            client.dtr = False
            time.sleep(0.1)
        service.wait_for_line('"event": "client_disconnected"')
    states = [(call.dtr, call.rts) for call in line_calls(shim)]
    assert states == [IDLE, STRAP, BOTH, STRAP, BOTH, STRAP, IDLE]
