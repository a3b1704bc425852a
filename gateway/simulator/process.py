"""The process of one simulated board: its folder, its tty, its control socket and its log.

In the folder (`dir` in the URL) are `tty`, a link to the pty that the host opens, `by-path` and
`usb.json` (`tty_links`); `control`, a unix stream socket for what a pty can't carry; and
`log.jsonl`, what happened to the board since this process started. What a board is, is `board`'s
and `link`'s matter; `host` starts the process and speaks to it.

A USB device that goes, as a reset makes it do on some boards (`attachment`), hangs the pty up,
takes the links away and ends the connections that set lines; after `reenumerate_s` there is a new
pty with new links, whose lines are off. Meanwhile the board runs on, and what it says is lost.

Control protocol, one line of text each:
    lines DTR RTS STAMP   both set to 0 or 1 at STAMP (ns of CLOCK_MONOTONIC); no answer
    unplug                the tty goes away, and with it every other connection that set lines
    plug                  the board is powered up with a new tty
    reset                 the board's reset button is pressed
    state?                one line of JSON: what runs, at which rate, how the lines are, which
                          USB device it is
`unplug`, `plug` and `reset` are answered with `ok`, what is not understood with `error REASON`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from gateway.simulator.board import Board, LogEntry
from gateway.simulator.flash import Flash
from gateway.simulator.link import Link
from gateway.simulator.tty_links import TTY_NAME, TtyLinks
from gateway.simulator.url import BoardUrl, parse_url
from gateway.simulator.usb import USB_BAUDRATE, UsbKind

CONTROL_NAME = "control"
LOG_NAME = "log.jsonl"

#: The process ends when its standard input does: how it notices that its starter has died.
EXIT_WITH_STDIN = "--exit-with-stdin"

#: First word of the one line on standard output; the tty's path or the reason follows.
READY = "ready"
FAILED = "failed"

#: No request is longer; keeps what a broken client can make us collect small.
MAX_REQUEST_BYTES = 200

_NS_PER_S = 1_000_000_000


class BoardProcess:
    """The board with what the outside sees of it; the working directory is its folder.

    Runs on the running event loop, from the first `plug` to `close`.
    """

    def __init__(self, url: BoardUrl) -> None:
        self._url = url
        self._loop = asyncio.get_running_loop()
        self._flash = Flash(url.flash_mb << 20)
        self._board: Board | None = None
        self._link: Link | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._return_timer: asyncio.TimerHandle | None = None
        self._enumeration = 0  # the board's, when its tty was shown last
        self._links = TtyLinks(Path(), renames=url.renames)
        self.line_setters: set[_ControlConnection] = set()  # end with the tty
        self._log = Path(LOG_NAME).open("w", encoding="utf-8")  # noqa: SIM115 - until close()

    @property
    def has_tty(self) -> bool:
        """Whether the board is there for the host."""
        return self._link is not None

    def plug(self) -> None:
        """Give the board power and a new tty; nothing happens if it has power."""
        if self._board is not None:
            return
        now_ns = time.monotonic_ns()
        self._board = Board(self._url, self._flash, now_ns)
        self._note("plugged")
        self._show_tty()

    def unplug(self) -> None:
        """Take power and tty away; nothing happens if there is neither."""
        if self._board is None:
            return
        self._hide_tty()
        self._board = None
        for timer in (self._timer, self._return_timer):
            if timer is not None:
                timer.cancel()
        self._note("unplugged")

    def press_reset(self) -> None:
        """Someone presses the reset button; nothing happens without power."""
        if self._board is not None:
            self._board.press_reset(time.monotonic_ns())
            self._step()

    def set_lines(self, stamp_ns: int, dtr: bool, rts: bool) -> None:
        """The host set both lines at `stamp_ns`; the board must have a tty."""
        if self._board is not None:
            self._board.set_lines(time.monotonic_ns(), stamp_ns, dtr, rts)
            self._step()

    def state(self) -> dict[str, object]:
        """What `state?` tells."""
        state: dict[str, object] = {"name": self._url.name, "chip": self._url.chip}
        if self._board is None:
            return {**state, "runs": "unplugged"}
        device = self._links.device
        return {
            **state,
            "usb": self._url.usb_kind.value,
            "usb_number": device and device.number,
            "usb_ids": device and str(device.ids),
            "runs": self._board.runs.value,
            "mode": self._board.boot_mode,
            "baudrate": self._board.baudrate,
            "host_baudrate": self._link and self._link.host_baudrate,
            "dtr": self._board.dtr,
            "rts": self._board.rts,
            "tty": self._link and self._link.path,
        }

    def close(self) -> None:
        """Unplug and leave nothing in the folder but the log."""
        self.unplug()
        Path(CONTROL_NAME).unlink(missing_ok=True)
        self._log.close()

    def _step(self) -> None:
        """Let the board do what is due, pass on what that led to, and see when it is due next."""
        if self._board is None:
            return
        self._board.handle_timer(time.monotonic_ns())
        if self._board.enumeration != self._enumeration and self._return_timer is None:
            self._hide_tty()
            self._return_timer = self._loop.call_later(self._url.reenumerate_s, self._show_tty)
        if self._link is None:
            self._board.discard_output(time.monotonic_ns())
        else:
            self._link.wake()
        self._write_log(self._board.log_entries())
        if self._timer is not None:
            self._timer.cancel()
        deadline_ns = self._board.next_deadline()
        if deadline_ns is not None:
            self._timer = self._loop.call_at(deadline_ns / _NS_PER_S, self._step)

    def _show_tty(self) -> None:
        """The USB device appears."""
        if self._board is None:
            return
        self._return_timer = None
        self._enumeration = self._board.enumeration
        self._link = self._new_link(self._board)
        device = self._links.show(self._link.path, self._board.usb_ids)
        self._note(
            "usb_shown",
            number=device.number,
            ids=str(device.ids),
            name=device.tty_name,
            tty=self._link.path,
        )
        self._step()

    def _hide_tty(self) -> None:
        """The USB device goes; nothing happens if there is none."""
        if self._link is None:
            return
        self._link.close()
        self._link = None
        self._links.hide()
        for connection in self.line_setters:
            connection.close()
        self.line_setters.clear()
        self._note("usb_gone")

    def _new_link(self, board: Board) -> Link:
        if self._url.usb_kind is UsbKind.BRIDGE:
            return Link(board, after_transfer=self._step, lost=self._note_lost)

        def set_host_baudrate(baudrate: int) -> None:
            board.set_host_baudrate(time.monotonic_ns(), baudrate)
            self._step()

        return Link(
            board,
            after_transfer=self._step,
            lost=self._note_lost,
            usb_baudrate=USB_BAUDRATE,
            rate_set=set_host_baudrate if self._url.usb_kind is UsbKind.OTG else None,
        )

    def _note_lost(self, n_bytes: int) -> None:
        self._note("bytes_lost", n_bytes=n_bytes)

    def _note(self, event: str, **details: object) -> None:
        self._write_log([{"t_ns": time.monotonic_ns(), "event": event, **details}])

    def _write_log(self, entries: list[LogEntry]) -> None:
        if entries:
            self._log.write("".join(json.dumps(entry) + "\n" for entry in entries))
            self._log.flush()


class _ControlConnection(asyncio.Protocol):
    """One client of the control socket."""

    def __init__(self, process: BoardProcess, others: set[_ControlConnection]) -> None:
        self._process = process
        self._connections = others
        self._transport: asyncio.Transport | None = None
        self._request = bytearray()
        self._is_too_long = False  # skip to the end of the line

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - for the type checker
        self._transport = transport
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._connections.discard(self)
        self._process.line_setters.discard(self)

    def pause_writing(self) -> None:
        if self._transport is not None:  # who does not read answers asks no more questions
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        *ends, rest = data.split(b"\n")
        for end in ends:
            self._collect(end)
            if not self._is_too_long:
                self._answer(bytes(self._request))
            self._request.clear()
            self._is_too_long = False
        self._collect(rest)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _collect(self, data: bytes) -> None:
        self._request += data
        if len(self._request) > MAX_REQUEST_BYTES and not self._is_too_long:
            self._is_too_long = True
            self._say(f"error request longer than {MAX_REQUEST_BYTES} bytes")
        if self._is_too_long:
            self._request.clear()

    def _say(self, line: str) -> None:
        if self._transport is not None:
            self._transport.write(line.encode() + b"\n")

    def _answer(self, request: bytes) -> None:
        match request.split():
            case [b"lines", dtr, rts, stamp]:
                self._set_lines(dtr, rts, stamp)
            case [b"plug"]:
                self._process.plug()
                self._say("ok")
            case [b"unplug"]:
                self._process.line_setters.discard(self)  # it is still to be answered
                self._process.unplug()
                self._say("ok")
            case [b"reset"]:
                self._process.press_reset()
                self._say("ok")
            case [b"state?"]:
                self._say(json.dumps(self._process.state()))
            case _:
                self._say("error expected lines DTR RTS STAMP, plug, unplug, reset, state?")

    def _set_lines(self, dtr: bytes, rts: bytes, stamp: bytes) -> None:
        levels = {b"0": False, b"1": True}
        if dtr not in levels or rts not in levels or not stamp.isdigit():
            self._say("error expected lines <0|1> <0|1> <ns of CLOCK_MONOTONIC>")
        elif not self._process.has_tty:
            self._say("error the board is unplugged")
        else:
            self._process.line_setters.add(self)
            self._process.set_lines(int(stamp), levels[dtr], levels[rts])


async def _serve(url: BoardUrl, folder: Path, *, exit_with_stdin: bool) -> None:
    """Run the board in `folder`, the working directory, until told to end."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    connections: set[_ControlConnection] = set()
    process = BoardProcess(url)
    try:
        # By its relative name, for the path of a unix socket is short (108 bytes).
        server = await loop.create_unix_server(
            lambda: _ControlConnection(process, connections), CONTROL_NAME
        )
        process.plug()
        if exit_with_stdin:
            loop.add_reader(sys.stdin.fileno(), stop.set)
        print(READY, folder / TTY_NAME, flush=True)  # noqa: T201 - what the starter waits for
        await stop.wait()
        server.close()
        for connection in list(connections):
            connection.close()
    finally:
        process.close()


def _enter_folder(folder: Path) -> None:
    """Make the folder ours and the working directory; OSError when it can't be."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.chdir(folder)
    # Held until the process ends, however it ends; nothing is left behind.
    lock = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OSError(f"{folder} is in use by another simulated board") from None


def main(args: Sequence[str]) -> int:
    """Run one board until SIGTERM or SIGINT; 0 when it was ended so, 1 when it can't start.

    Prints one line: `ready TTY` once the tty can be opened, or `failed REASON`.
    """
    exit_with_stdin = EXIT_WITH_STDIN in args
    urls = [arg for arg in args if arg != EXIT_WITH_STDIN]
    os.umask(0o077)  # tty, control socket and log are their owner's
    with contextlib.ExitStack() as cleanup:
        try:
            if len(urls) != 1:
                raise ValueError(f"expected [{EXIT_WITH_STDIN}] sim://CHIP?KEY=VALUE&...")
            url = parse_url(urls[0])
            folder = (
                Path(url.folder or cleanup.enter_context(tempfile.TemporaryDirectory()))
            ).absolute()
            _enter_folder(folder)
            asyncio.run(_serve(url, folder, exit_with_stdin=exit_with_stdin))
        except (OSError, ValueError) as error:
            print(FAILED, error, flush=True)  # noqa: T201 - what the starter waits for
            return 1
    return 0
