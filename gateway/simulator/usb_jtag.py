"""A chip's own USB-Serial/JTAG controller: from DTR and RTS to the chip's reset.

Source: ESP32-C3 Technical Reference Manual, tables 30.3-2 and 30.4-1 (those of the ESP32-S3, C6
and H2 say the same). There is no circuit; the controller acts on the pair of lines that the host's
control transfer brings:

    RTS off, DTR off   clear the download flag
    RTS off, DTR on    set the download flag
    RTS on, DTR off    reset the chip; with the flag set it comes back in download mode
    both on            nothing

The manual's sequence leaves the reset through "both off", which clears the flag, and is in
download mode all the same: the flag counts at the moment that the reset begins. The chip is in
reset for as long as the pair stays (the manual's "Exit reset").

This reset is one of the digital core: the controller is not part of it and stays enumerated. What
does take the USB device away is the board's matter (`board`).

Pure logic: times are arguments, in nanoseconds of CLOCK_MONOTONIC.
"""

from __future__ import annotations

from gateway.simulator.chips import ResetCause
from gateway.simulator.circuit import Boot, ChipReset, DownloadFlag, EnHigh, Event, LinesSet


class UsbJtag:
    """The controller of one chip, from the moment that the USB device appears.

    `boots_ns` is when the chip starts by itself after power-up, None if it runs already.
    """

    def __init__(self, boots_ns: int | None = None) -> None:
        self.dtr = False
        self.rts = False
        self._flag = False
        self._latched_flag = False  # the flag when the reset in force began
        self._boots_ns = boots_ns
        self._events: list[Event] = []

    def set_lines(self, stamp_ns: int, dtr: bool, rts: bool) -> None:
        """The host set both lines at `stamp_ns`; takes effect in the order of the calls."""
        was_reset = self._is_reset
        self.dtr, self.rts = dtr, rts
        self._events.append(LinesSet(stamp_ns, dtr, rts))
        if not rts and dtr != self._flag:
            self._flag = dtr
            self._events.append(DownloadFlag(stamp_ns, dtr))
        if self._is_reset and not was_reset:
            self._latched_flag = self._flag
            self._boots_ns = None
            self._events.append(ChipReset(stamp_ns, self._flag))
        elif was_reset and not self._is_reset:
            self._events.append(Boot(stamp_ns, self._latched_flag, ResetCause.USB))

    def next_deadline(self) -> int | None:
        """When `handle_timer` wants to be called, if at all."""
        return self._events[0].t_ns if self._events else self._boots_ns

    def handle_timer(self, now_ns: int) -> list[Event]:
        """What has happened up to now."""
        events, self._events = self._events, []
        if self._boots_ns is not None and self._boots_ns <= now_ns:
            events += [EnHigh(self._boots_ns), Boot(self._boots_ns, download=False)]
            self._boots_ns = None
        return events

    def enters_download(self, cause: ResetCause) -> bool:
        """Whether a reset that the host's lines have no part in leads to download mode.

        The strap is never low; only a reset that spares the controller leaves it the flag.
        """
        return self._flag and cause is ResetCause.SOFTWARE

    @property
    def _is_reset(self) -> bool:
        return self.rts and not self.dtr
