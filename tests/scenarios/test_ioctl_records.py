"""What real clients' commands come to at the tty, call by call with times, against records.

The clients' streams are recorded ones (tests/support/client_sequences.py); the records are in
ioctl_records/. A change of a record is a change of what boards see: look at each line of it, then
write the records again with

    RECORD_IOCTLS=1 pytest tests/scenarios/test_ioctl_records.py
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support import client_sequences as clients
from tests.support.client_sequences import Sent
from tests.support.world import PURGE_BOTH, State, UsbIds, World, com_port, turns, world

RECORDS = Path(__file__).parent / "ioctl_records"

#: How often clients look for their answers, and what they sleep instead if they do not; a little
#: longer than they mean to, so that no timer of the gateway's is due in the same moment.
POLL_S = clients.ACKNOWLEDGEMENT_POLL_S + 0.002
NO_POLL_S = clients.IGNORED_ACKNOWLEDGEMENT_S + 0.002

#: What is opened, entered and left by each client; `poll_s` is how often it looks for its answers,
#: None for one that does not (`?ign_set_control`).
STREAMS: dict[str, tuple[float | None, tuple[Sent, ...]]] = {
    "pyserial opens and closes": (POLL_S, clients.OPEN),
    "esptool enters the bootloader, then resets": (
        POLL_S,
        (*clients.OPEN, *clients.ESPTOOL_CLASSIC, *clients.ESPTOOL_HARD_DTR_OFF),
    ),
    "the same without waiting for answers": (
        None,
        (*clients.OPEN, *clients.ESPTOOL_CLASSIC, *clients.ESPTOOL_HARD_DTR_OFF),
    ),
    "esptool --before usb-reset, then resets": (
        POLL_S,
        (*clients.OPEN, *clients.ESPTOOL_USB_JTAG, *clients.ESPTOOL_HARD_USB_DTR_OFF),
    ),
    "esp-idf-monitor attaches, then resets": (
        POLL_S,
        (*clients.MONITOR_ATTACH, *clients.MONITOR_HARD),
    ),
    "pyserial opens with both lines off": (POLL_S, clients.OPEN_LINES_OFF),
    "esptool on a chip that does not answer": (POLL_S, clients.ESPTOOL_TWO_ATTEMPTS),
    "esptool resets behind open": (POLL_S, (*clients.OPEN, *clients.ESPTOOL_HARD_DTR_ON)),
    "esptool's custom sequence": (POLL_S, (*clients.OPEN, *clients.CUSTOM_CLASSIC)),
    "esp-idf-monitor attaches, then enters the bootloader": (
        POLL_S,
        (*clients.MONITOR_ATTACH, *clients.MONITOR_BOOTLOADER),
    ),
    "the same for an ESP32 of revision 0": (
        POLL_S,
        (*clients.MONITOR_ATTACH, *clients.MONITOR_BOOTLOADER_ESP32),
    ),
    "miniterm toggles both lines": (POLL_S, clients.MINITERM_TOGGLE),
    "mpremote opens and closes": (POLL_S, (*clients.OPEN, *clients.MPREMOTE_CLOSE)),
    "a script turns both lines off": (POLL_S, (*clients.OPEN, *clients.SCRIPT_LINES_OFF)),
    "a script pulses RTS": (POLL_S, clients.SCRIPT_RTS_PULSE),
    "a script raises both lines": (POLL_S, clients.SCRIPT_LINES_RAISED),
    "a script turns both lines off, and on later": (POLL_S, clients.SCRIPT_LINES_OFF_AND_ON),
    "PlatformIO's test runner": (POLL_S, clients.PIO_TEST),
    "the same with both lines on": (POLL_S, clients.PIO_TEST_LINES_ON),
}
#: Those that are played to every kind of board; the others to the classic circuit only.
TO_ALL = list(STREAMS)[:5]

#: The port's keys and the USB ids of its board, by the name of its record.
BOARDS: dict[str, tuple[str, UsbIds | None]] = {
    "classic": ("", None),
    "usb-jtag": ("", (0x303A, 0x1001)),
    "usb-otg": ("", (0x303A, 0x4001)),
    "touch-1200": ("reset: touch-1200", None),
    "none": ("reset: none", None),
    "sequence": ("reset: 'D0|R1|W0.2|U1,0|W0.1|D0'", None),
    "samd": ("", (0x239A, 0x800B)),
}


async def all_is_done(w: World) -> None:
    """Let happen what needs no time, also on a busy machine."""
    n_calls = -1
    while n_calls != len(w.board.calls.log):
        n_calls = len(w.board.calls.log)
        await turns(30)


async def plays(w: World, poll_s: float | None, stream: tuple[Sent, ...]) -> None:
    """A client connects, sends its commands as fast as it does, and closes."""
    client = await w.client()
    for sent in stream:
        await w.pass_time(sent.sleep_s)
        if sent.control is None:
            code, value = 12, bytes([PURGE_BOTH])
        else:
            code, value = 5, bytes([sent.control])
        answer = com_port(code + 100, value)
        n_answers = client.received.count(answer)
        await client.send(com_port(code, value))
        if poll_s is None:
            await w.pass_time(NO_POLL_S)
            continue
        while client.received.count(answer) == n_answers:
            await all_is_done(w)
            await w.pass_time(poll_s)
            await all_is_done(w)
            await client.reads_what_has_come()
    client.close()
    await w.until_idle()


def records(w: World, title: str, since: int, began_s: float) -> list[str]:
    """The lines of a record for the calls behind the first `since`."""
    calls = w.board.calls.log[since:]
    return [f"== {title}", *(f"{call.at_s - began_s:8.3f}  {call}" for call in calls), ""]


@pytest.mark.parametrize("name", BOARDS)
async def test_clients_do_to_the_tty_what_is_on_record(tmp_path: Path, name: str) -> None:
    keys, usb_ids = BOARDS[name]
    path = RECORDS / f"{name}.txt"
    async with world(tmp_path, keys, usb_ids=usb_ids) as w:
        lines = records(w, "the gateway opens the tty", 0, w.board.calls.log[0].at_s)
        for title in STREAMS if name == "classic" else TO_ALL:
            since, began_s = len(w.board.calls.log), w.clock.now_s
            await plays(w, *STREAMS[title])
            lines += records(w, title, since, began_s)
        since, began_s = len(w.board.calls.log), w.clock.now_s
        client = await w.client()
        await client.set_baudrate(1200)
        await w.run(client.control(*[sent.control for sent in clients.OPEN if sent.control]))
        client.close()
        await w.until_idle()
        lines += records(w, "a client opens at 1200 baud and closes", since, began_s)
        since, began_s = len(w.board.calls.log), w.clock.now_s
        await w.run(w.stop())
        assert w.state == State.STOPPED
        lines += records(w, "the gateway stops", since, began_s)
    if os.environ.get("RECORD_IOCTLS"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines))
    assert path.read_text().splitlines() == "\n".join(lines).splitlines()
