"""Resets by intent: what a client means by its DTR and RTS, played as its board needs it.

Clients over a network can't see what kind of board they have and play the classic sequence. A
board that needs another shows nothing of it: its lines rest until the meaning is known, then
its own sequence is played with its own times. The meaning is read from the line controller of
the classic circuit (`reset`), which has sorted out by then what a network does to the edges:
a reset that ends with IO0 low is an entry of the bootloader, any other a restart of the app; but
a client that plays USB-Serial/JTAG's sequence means the bootloader, whatever its board is.

Pure logic, as `reset`; which sequence a board needs is `reset_strategy`'s matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from gateway.protocol.reset import (
    BOTH,
    DEFAULT_HOLD_S,
    IDLE,
    RESET,
    STRAP,
    LineController,
    Lines,
    Starts,
)
from gateway.protocol.reset_sequence import TOUCH_1200, Baudrate, ResetSequence
from gateway.protocol.reset_strategy import Method, ResetStrategy
from gateway.protocol.reset_wire import Wire


class Controller(Protocol):
    """What plays a board's lines; `reset.LineController` says what each member means."""

    @property
    def wanted(self) -> Lines:
        """The client's target: what it is told."""

    @property
    def applied(self) -> Lines:
        """The state that the wire has been given."""

    @property
    def busy(self) -> bool:
        """True while the client's further bytes and commands have to wait."""

    def lines_to_set(self) -> Sequence[Lines | Baudrate]:
        """What to do on the wire now, in order."""

    def resets(self) -> Sequence[Starts]:
        """What the board has been told to start since the last call."""

    def next_deadline(self) -> float | None:
        """When `handle_timer` wants to be called, if at all."""

    def request(
        self,
        now: float,
        *,
        dtr: bool | None = None,
        rts: bool | None = None,
        at_1200: bool = False,
    ) -> None:
        """The client sets one line or both; `at_1200` if 1200 baud is what it has set."""

    def forget_commands(self) -> None:
        """Another client sends the next command."""

    def release(self, now: float, *, at_1200: bool = False) -> None:
        """The client has left; `at_1200` if DTR goes off at 1200 baud by that."""

    def enter_bootloader(self, now: float) -> None:
        """Reset the board into its bootloader."""

    def reset(self, now: float) -> None:
        """Reset the board into its app."""

    def handle_timer(self, now: float) -> None:
        """A deadline has passed."""

    def board_away(self, now: float) -> None:
        """The board has left the bus, its client stays."""


#: What a client that plays USB-Serial/JTAG's own sequence goes through, once it is recognised.
_USB_JTAG_PATH = frozenset({(STRAP, BOTH), (BOTH, RESET), (RESET, IDLE)})

#: How long after a board's return an entry of its bootloader counts as one more try of the one
#: that has made it leave. Tries of esptool are 2.3 s apart over a network; a board on USB-OTG
#: needs up to 2.5 s to come back, and each reset sends it away again.
_RETRY_S = 3.0
#: A board leaves the bus this soon after it has been told to, or for another reason.
_LEAVES_WITHIN_S = 2.0

#: How long DTR and the baud rate stay as they are after a touch. Arduino cores wait for 250 ms
#: before they restart, and don't if either changes (ArduinoCore-samd, CDC.cpp).
AFTER_TOUCH_S = 0.35


def controller_for(strategy: ResetStrategy, hold_s: float = DEFAULT_HOLD_S) -> Controller:
    """What plays this strategy; edges are held back for `hold_s` at most."""
    match strategy.method:
        case Method.CIRCUIT:
            return LineController(hold_s)
        case Method.INTENT:
            return IntentController(strategy, hold_s)
        case Method.AS_THEY_COME:
            return PassThrough(strategy)


def controller_of_returned(
    before: Controller, strategy: ResetStrategy, hold_s: float, now: float
) -> Controller:
    """What plays on when a board is back on the bus, its lines at rest.

    The same device may have come back as another, its bootloader as USB-Serial/JTAG for instance.
    """
    if isinstance(before, IntentController) and strategy.method is Method.INTENT:
        before.board_back(strategy, now)
        return before
    controller = controller_for(strategy, hold_s)
    if before.wanted == BOTH:  # the one state of a client that says nothing to a board
        controller.request(now, dtr=True, rts=True)
    return controller


class IntentController:
    """Understands a client that plays the classic sequence; the board gets its own.

    `wanted` is the client's target, `applied` the wire's state. While a sequence is played it is
    `busy`. The wire rests otherwise, but while a client plays USB-Serial/JTAG's own sequence to
    such a board: then the client's states are the wire's.
    """

    def __init__(self, strategy: ResetStrategy, hold_s: float = DEFAULT_HOLD_S) -> None:
        self._strategy = strategy
        self._hold_s = hold_s
        self._circuit = LineController(hold_s)
        self._understood = IDLE  # the last state of the circuit that has been looked at,
        self._before_that = IDLE  # and the one before it
        self._wire = Wire(strategy.rest)
        self._follows = False  # the client plays the board's own sequence
        self._plays_usb_jtag = False  # the client takes the board for USB-Serial/JTAG
        self._abandoned = False  # the reset that the client is in has nobody left to end it
        self._last_entry = float("-inf")  # when the board was last sent into its bootloader
        self._is_retry_until = float("-inf")  # an entry until then is the last one again

    @property
    def wanted(self) -> Lines:
        """The client's target."""
        return self._circuit.wanted

    @property
    def applied(self) -> Lines:
        """The state that the wire has been given."""
        return self._wire.lines

    @property
    def busy(self) -> bool:
        """True while a sequence is played or a state of the client waits for its time."""
        return self._circuit.busy or self._wire.is_playing

    def lines_to_set(self) -> Sequence[Lines | Baudrate]:
        """What to do on the wire now, in order."""
        return self._wire.take()

    def resets(self) -> Sequence[Starts]:
        """What the board has been told to start since the last call."""
        return self._wire.take_resets()

    def next_deadline(self) -> float | None:
        """When `handle_timer` wants to be called, if at all."""
        times = (self._circuit.next_deadline(), self._wire.next_time)
        return min((time for time in times if time is not None), default=None)

    def request(
        self,
        now: float,
        *,
        dtr: bool | None = None,
        rts: bool | None = None,
        at_1200: bool = False,
    ) -> None:
        """The client sets one line or both; DTR going off at 1200 baud is a touch."""
        before = self._circuit.wanted
        if self._takes_touch(at_1200=at_1200) and dtr is False:
            self._touch(now, Lines(dtr=False, rts=before.rts if rts is None else rts))
            return
        self._circuit.request(now, dtr=dtr, rts=rts)
        self._understand(now)
        if self._begins_usb_jtag(before, dtr=dtr, rts=rts):
            self._follows = self._strategy.follows_usb_jtag
            self._plays_usb_jtag = not self._follows
            if self._follows:
                self._wire.show(STRAP)

    def forget_commands(self) -> None:
        """Another client sends the next command: it continues nothing of what was sent before."""
        self._circuit.forget_commands()

    def release(self, now: float, *, at_1200: bool = False) -> None:
        """The client has left: its board runs its app, or the bootloader that it has asked for.

        A reset or an entry that the client has sent to its end is carried out; a client that
        left in the middle of an entry has its board restarted, and no other client has. A client
        that leaves at 1200 baud with DTR on has touched the board, as by closing a local port.
        """
        is_complete = self._circuit.is_finishing
        in_entry = self._understood == STRAP and self._circuit.strap_follows_reset
        if self._takes_touch(at_1200=at_1200) and not is_complete and not in_entry:
            self._touch(now, IDLE)
            return
        was_followed_into_reset = self._follows and self._wire.lines == RESET
        if not is_complete:
            self._abandoned = self._understood == RESET
            if in_entry or self._follows:
                self._wire.stop()
            self._follows = False
        self._circuit.release(now)
        self._understand(now)
        if was_followed_into_reset and not is_complete:
            self._wire.play(self._strategy.hard, Starts.APP, now)

    def enter_bootloader(self, now: float) -> None:
        """Reset the board into its bootloader, asked for by the gateway and not by a client.

        The client's lines are off afterwards, whatever they were and whatever was under way.
        """
        self._last_entry = now
        self._play(self._strategy.bootloader, Starts.BOOTLOADER, now)

    def reset(self, now: float) -> None:
        """Reset the board into its app; otherwise as `enter_bootloader`."""
        self._play(self._strategy.hard, Starts.APP, now)

    def handle_timer(self, now: float) -> None:
        """A deadline has passed."""
        self._wire.advance(now)
        self._circuit.handle_timer(now)
        self._understand(now)

    def board_away(self, now: float) -> None:
        """The board has left the bus, its client stays: nothing more is played to it.

        A client that tries its bootloader again, for the board needs its time, gets none of that.
        """
        self._wire.board_away()
        self._follows = False
        self._abandoned = self._understood == RESET
        takes_s = self._strategy.bootloader.duration_s + _LEAVES_WITHIN_S
        has_obeyed = now - self._last_entry <= takes_s
        self._is_retry_until = float("inf") if has_obeyed else float("-inf")

    def board_back(self, strategy: ResetStrategy, now: float) -> None:
        """The board is on the bus again, its lines at rest."""
        self._strategy = strategy
        self._wire = Wire(strategy.rest)
        self._is_retry_until = min(self._is_retry_until, now + _RETRY_S)

    def _play(self, sequence: ResetSequence, starts: Starts, now: float) -> None:
        self._forget_client()
        self._wire.stop()
        self._wire.play(sequence, starts, now)

    def _forget_client(self) -> None:
        self._circuit = LineController(self._hold_s)
        self._understood = self._before_that = IDLE
        self._follows = self._abandoned = self._plays_usb_jtag = False

    def _takes_touch(self, *, at_1200: bool) -> bool:
        """Whether the board is touched when the client's DTR goes off."""
        return at_1200 and self._strategy.takes_touch and self._circuit.wanted.dtr

    def _touch(self, now: float, wanted: Lines) -> None:
        """Pass the client's touch on; what it has sent before it is over."""
        self._forget_client()
        self._circuit.wanted = wanted
        self._last_entry = now
        self._wire.play(TOUCH_1200, Starts.BOOTLOADER, now)

    def _understand(self, now: float) -> None:
        for lines in self._circuit.lines_to_set():
            before, self._understood = self._understood, lines
            self._before_that = before
            if self._follows:
                self._wire.show(lines)
                if lines == RESET:
                    self._wire.tell(Starts.BOOTLOADER)
                self._follows = lines != IDLE
            elif before == RESET and not self._abandoned:
                if lines == STRAP or self._plays_usb_jtag:
                    self._enter(now)
                else:
                    self._wire.play(self._strategy.hard, Starts.APP, now)
            self._abandoned = self._abandoned and lines == RESET
            goes_on = (before, lines) in _USB_JTAG_PATH and lines != IDLE
            self._plays_usb_jtag = self._plays_usb_jtag and goes_on

    def _enter(self, now: float) -> None:
        if now > self._is_retry_until:
            self._last_entry = now
            self._wire.play(self._strategy.bootloader, Starts.BOOTLOADER, now)
        elif self._is_retry_until < float("inf"):
            self._is_retry_until = float("-inf")  # a second one is meant

    def _begins_usb_jtag(self, before: Lines, *, dtr: bool | None, rts: bool | None) -> bool:
        """Whether this command shows that the client knows what board it has.

        `DTR on` from idle is the first half of pyserial's open() as well, but then `RTS on`
        follows. Only who means the state says `RTS off` when it is off already.
        """
        if rts is not False:
            return False
        is_strap_from_idle = (self._before_that, self._understood) == (IDLE, STRAP)
        return is_strap_from_idle and (before == STRAP or dtr is True)


class PassThrough:
    """The client's lines as they come, one step on the wire for each command.

    They go back to rest, in one step, when the client has left. The gateway's own resets are the
    strategy's.
    """

    def __init__(self, strategy: ResetStrategy) -> None:
        self.wanted = strategy.rest
        self._strategy = strategy
        self._wire = Wire(strategy.rest)

    @property
    def applied(self) -> Lines:
        """The state that the wire has been given."""
        return self._wire.lines

    @property
    def busy(self) -> bool:
        """True while a reset of the gateway's own or a touch is played."""
        return self._wire.is_playing

    def lines_to_set(self) -> Sequence[Lines | Baudrate]:
        """What to do on the wire now, in order."""
        return self._wire.take()

    def resets(self) -> Sequence[Starts]:
        """What the board has been told to start since the last call."""
        return self._wire.take_resets()

    def next_deadline(self) -> float | None:
        """When `handle_timer` wants to be called, if at all."""
        return self._wire.next_time

    def request(
        self,
        now: float,
        *,
        dtr: bool | None = None,
        rts: bool | None = None,
        at_1200: bool = False,
    ) -> None:
        """The client sets one line or both.

        After a touch nothing else is done for a moment: boards take it back when DTR or the baud
        rate changes too soon.
        """
        before = self.wanted
        self.wanted = Lines(
            dtr=before.dtr if dtr is None else dtr, rts=before.rts if rts is None else rts
        )
        if self._wire.is_playing:
            return
        if self._strategy.has_circuit and self._wire.lines == RESET != self.wanted:
            enters = self.wanted == STRAP
            self._wire.tell(Starts.BOOTLOADER if enters else Starts.APP)
        is_touch = at_1200 and self._wire.lines.dtr and not self.wanted.dtr
        self._wire.show(self.wanted)
        if is_touch:
            self._wire.tell(Starts.BOOTLOADER)
            self._wire.wait(AFTER_TOUCH_S, now)

    def forget_commands(self) -> None:
        """Another client sends the next command: each passes by itself."""

    def release(self, now: float, *, at_1200: bool = False) -> None:
        """The client has left: lines at rest in one step, when what is played is over.

        At 1200 baud with DTR on this is a touch, as closing a local port is.
        """
        self.wanted = self._strategy.rest
        if self._wire.is_playing:
            return
        if at_1200 and self._wire.lines.dtr:
            self._wire.tell(Starts.BOOTLOADER)
            self._wire.show(IDLE)
            self._wire.wait(AFTER_TOUCH_S, now)
        else:
            self._wire.show(self.wanted)

    def enter_bootloader(self, now: float) -> None:
        """Reset the board into its bootloader; lines are at rest afterwards."""
        self._play(self._strategy.bootloader, Starts.BOOTLOADER, now)

    def reset(self, now: float) -> None:
        """Reset the board into its app; lines are at rest afterwards."""
        self._play(self._strategy.hard, Starts.APP, now)

    def handle_timer(self, now: float) -> None:
        """A deadline has passed."""
        self._wire.advance(now)
        if not self._wire.is_playing:
            self._wire.show(self.wanted)

    def board_away(self, now: float) -> None:  # noqa: ARG002
        """The board has left the bus: nothing more is played to it."""
        self._wire.board_away()

    def _play(self, sequence: ResetSequence, starts: Starts, now: float) -> None:
        self.wanted = self._strategy.rest
        self._wire.stop()
        if sequence.steps:
            self._wire.play(sequence, starts, now)
