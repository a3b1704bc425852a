"""The process of one simulated board: `python -m gateway.simulator 'sim://esp32?dir=/some/folder'`.

In the folder (`dir` in the URL) are the links that udev makes of a USB serial port:

    tty          the kernel's name (ttyACM0); a board that `renames` comes back as tty-1, tty-2, ...
    by-path      a link to the present one, under a name that stays (/dev/serial/by-path)
    usb.json     the device (idVendor and idProduct in sysfs); `host.read_usb_device` reads it

and `control`, a unix stream socket for what a pty can't carry, and `log.jsonl`, what happened to
the board since this process started.

A USB device that goes, as a reset makes it do on some boards (`attachment`), hangs the pty up,
takes the links away and ends the connections that set lines; after `reenumerate_s` there is a new
pty with new links, whose lines are off. Meanwhile the board runs on, and its output is lost.

Control protocol, one line of text each:
    lines DTR RTS STAMP   both set to 0 or 1 at STAMP (ns of CLOCK_MONOTONIC); no answer
    unplug                the tty goes away, and with it every other connection that set lines
    plug                  the board is powered up with a new tty
    reset                 the board's reset button is pressed
    state?                one line of JSON: what runs, at which rate, how the lines are, which
                          USB device it is
`unplug`, `plug` and `reset` are answered with `ok`, other requests with `error REASON`; a line of
more than MAX_REQUEST_BYTES ends the connection.
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

from gateway.simulator.attachment import USB_BAUDRATE, UsbIds
from gateway.simulator.board import Board, LogEntry
from gateway.simulator.chips import UsbKind
from gateway.simulator.flash import Flash
from gateway.simulator.host import (
    BY_PATH_NAME,
    CONTROL_NAME,
    EXIT_WITH_STDIN,
    FAILED,
    LOG_NAME,
    MAX_REQUEST_BYTES,
    READY,
    TTY_NAME,
    USB_NAME,
    UsbDevice,
)
from gateway.simulator.link import Link
from gateway.simulator.url import BoardUrl, parse_url

_NS_PER_S = 1_000_000_000


class TtyLinks:
    """The links in the working directory; `renames` gives each new device another kernel's name.

    All are there while the device is, and none while it is not. Each is renamed into place, the
    kernel's name last: where it exists, so do the others.
    """

    def __init__(self, *, renames: bool) -> None:
        self._renames = renames
        self._count = 0
        self.device: UsbDevice | None = None

    def show(self, pty: str, ids: UsbIds) -> UsbDevice:
        """The device appears, with its tty at `pty`."""
        name = f"{TTY_NAME}-{self._count}" if self._renames and self._count else TTY_NAME
        self._count += 1
        self.device = device = UsbDevice(self._count, ids, name)
        entry = {"number": device.number, "ids": str(ids), "tty": name}
        new = _free(USB_NAME)
        new.write_text(json.dumps(entry) + "\n", encoding="ascii")
        new.rename(USB_NAME)
        for link, target in ((BY_PATH_NAME, name), (name, pty)):
            new = _free(link)
            new.symlink_to(target)
            new.rename(link)
        return device

    def hide(self) -> None:
        """The device goes; nothing happens if there is none."""
        if self.device is not None:
            for name in (BY_PATH_NAME, self.device.tty_name, USB_NAME):
                Path(name).unlink(missing_ok=True)
            self.device = None


def _free(name: str) -> Path:
    """A free name to make a file under that will be renamed to `name`."""
    new = Path(f".{name}.new")
    new.unlink(missing_ok=True)
    return new


class BoardProcess:
    """The board and its files; the working directory is its folder.

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
        self._links = TtyLinks(renames=url.renames)
        self._line_setters: set[asyncio.StreamWriter] = set()  # end with the tty
        self._log = Path(LOG_NAME).open("w", encoding="utf-8")  # noqa: SIM115 - until close()

    def plug(self) -> None:
        """Give the board power and a new tty; nothing happens if it has power."""
        if self._board is not None:
            return
        self._board = Board(self._url, self._flash, time.monotonic_ns())
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

    async def serve_control(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Answer one client of the control socket until it hangs up or sends too long a line."""
        # ValueError: longer than MAX_REQUEST_BYTES.
        with contextlib.closing(writer), contextlib.suppress(ConnectionError, ValueError):
            while request := await reader.readline():
                answer = self._answer(request, writer)
                if answer is not None:
                    writer.write(answer.encode() + b"\n")
                    await writer.drain()
        self._line_setters.discard(writer)

    def _answer(self, request: bytes, writer: asyncio.StreamWriter) -> str | None:
        match request.split():
            case [b"lines", (b"0" | b"1") as dtr, (b"0" | b"1") as rts, stamp] if stamp.isdigit():
                if self._link is None or self._board is None:
                    return "error the board is unplugged"
                self._line_setters.add(writer)
                now_ns = time.monotonic_ns()
                self._board.set_lines(now_ns, int(stamp), dtr == b"1", rts == b"1")
                self._step()
                return None
            case [b"plug"]:
                self.plug()
            case [b"unplug"]:
                self._line_setters.discard(writer)  # it is still to be answered
                self.unplug()
            case [b"reset"]:
                if self._board is not None:
                    self._board.press_reset(time.monotonic_ns())
                    self._step()
            case [b"state?"]:
                return json.dumps(self._state())
            case _:
                return "error expected lines <0|1> <0|1> <ns>, plug, unplug, reset or state?"
        return "ok"

    def _state(self) -> dict[str, object]:
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
        kind = self._url.usb_kind
        self._link = Link(
            self._board,
            after_transfer=self._step,
            lost=lambda n_bytes: self._note("bytes_lost", n_bytes=n_bytes),
            usb_baudrate=None if kind is UsbKind.BRIDGE else USB_BAUDRATE,
            rate_set=self._set_host_baudrate if kind is UsbKind.OTG else None,
        )
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
        for writer in self._line_setters:
            writer.close()
        self._line_setters.clear()
        self._note("usb_gone")

    def _set_host_baudrate(self, baudrate: int) -> None:
        if self._board is not None:
            self._board.set_host_baudrate(time.monotonic_ns(), baudrate)
            self._step()

    def _note(self, event: str, **details: object) -> None:
        self._write_log([{"t_ns": time.monotonic_ns(), "event": event, **details}])

    def _write_log(self, entries: list[LogEntry]) -> None:
        if entries:
            self._log.write("".join(json.dumps(entry) + "\n" for entry in entries))
            self._log.flush()


async def _serve(url: BoardUrl, folder: Path, *, exit_with_stdin: bool) -> None:
    """Run the board in `folder`, the working directory, until a signal or the end of stdin."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    process = BoardProcess(url)
    clients: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # asyncio 3.11 logs a traceback for a coroutine here that is cancelled at the end.
        task = loop.create_task(process.serve_control(reader, writer))
        clients.add(task)
        task.add_done_callback(clients.discard)

    try:
        # By its relative name, for the path of a unix socket is short (108 bytes).
        server = await asyncio.start_unix_server(connected, CONTROL_NAME, limit=MAX_REQUEST_BYTES)
        process.plug()
        if exit_with_stdin:
            loop.add_reader(sys.stdin.fileno(), stop.set)
        print(READY, folder / TTY_NAME, flush=True)  # noqa: T201 - the starter waits for it
        await stop.wait()
        server.close()
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
            print(FAILED, error, flush=True)  # noqa: T201 - the starter waits for it
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
