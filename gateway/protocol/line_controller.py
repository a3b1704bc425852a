"""DTR and RTS of one board: from a client's commands to the states that the board sees.

A client moves one line at a time, and over a network 50 ms and more lie between two moves, so the
pair passes through states that a local client never dwells in. `LineController` keeps what the
client wants apart from what the wire shows and lets only the meant states through: that is all a
board with the classic circuit needs.

Clients over a network can't see what kind of board they have and play the classic sequence. A
board that needs another shows nothing of it (`IntentController`): its lines rest until the meaning
is known, then its own sequence is played with its own times. The meaning is read from a
`LineController`, which has sorted out by then what a network does to the edges: a reset that ends
with IO0 low is an entry of the bootloader, any other a restart of the app; but a client that plays
USB-Serial/JTAG's sequence means the bootloader on any board.

Pure logic: times are arguments (seconds of any monotonic clock), the line changes to make are
fetched with `lines_to_set`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from gateway.protocol.reset import (
    BOTH,
    DEFAULT_HOLD_S,
    IDLE,
    RESET,
    STRAP,
    TOUCH_1200,
    Baudrate,
    Lines,
    Method,
    ResetSequence,
    ResetStrategy,
    Starts,
)

#: Shortest reset that is put on the wire, and shortest time that IO0 then stays for the boot
#: ROM to sample it. Clients wait 100 and 50 ms; a network that delivers their commands in a bunch
#: would shrink that to nothing. EN of the slowest common board (10 ms RC) crosses the chip's
#: threshold (0.75 VDD) after 14 ms.
MIN_RESET_S = 0.05
MIN_STRAP_S = 0.05


#: The two edges that a client may be only half way through, and what is held back with them:
#: RESET -> BOTH: the first half of "release EN with IO0 low" (`DTR on` before `RTS off`). Let
#:   through, EN is up long before IO0 is low: the chip boots its app.
#: BOTH -> RESET: either the first half of "both off" (`DTR off` before `RTS off`, as clients do
#:   right after open) or the start of a reset. Let through, attaching a monitor resets the board.
_HELD_EDGES = frozenset({(RESET, BOTH), (BOTH, RESET)})

#: What Espressif's tools send for a hard reset straight after open, when both lines are on: each
#: RTS command with the DTR in force behind it (esp_pylib.serial_reset.set_rts). No other client
#: says RTS on again, and IO0 low is not meant at the end of it.
_HARD_RESET_WITH_DTR_ON = [("rts", True), ("dtr", True), ("rts", False), ("dtr", True)]

#: Both lines off and on again, one after the other: how PlatformIO (`pio test`) and scripts for
#: Arduino boards reset a board. At a local port the first step is the reset, since RTS is on while
#: DTR goes off. An attach ends with lines that are off, or never has them off.
_TOGGLE = [("dtr", False), ("rts", False), ("dtr", True), ("rts", True)]


class LineController:
    """Turns a client's DTR and RTS commands into the line states that the board shall see.

    `wanted` is the client's target, `applied` what has been handed out by `lines_to_set`.
    While `busy`, a state waits for its time: the caller keeps the client's further bytes and
    commands back, so that order holds and no queue grows. A held edge does not make it busy,
    for only the client's next command tells what was meant.
    """

    def __init__(self, hold_s: float = DEFAULT_HOLD_S) -> None:
        self.wanted = IDLE
        self.applied = IDLE
        self._hold_s = hold_s
        self._steps: deque[Lines] = deque()
        self._out: list[Lines] = []
        self._resets: list[Starts] = []
        self._earliest = float("-inf")  # when the next step may be applied
        self._held_until: float | None = None  # `wanted` is held back until then
        self.strap_follows_reset = False  # `applied` is STRAP, and was RESET before
        self._since_both: list[tuple[str, bool]] = []  # commanded since both lines are on
        self._latest: list[tuple[str, bool]] = []  # as many commands as a toggle has, and one more
        self._commanded_at = float("-inf")

    @property
    def is_finishing(self) -> bool:
        """True while what the client has sent to its end waits for its time."""
        # DTR is on again behind a hard reset that was sent with DTR on, both lines behind a toggle.
        steps = list(self._steps)
        is_pulse = steps in ([BOTH], [RESET, BOTH]) and RESET in (self.applied, steps[0])
        return is_pulse or steps in ([IDLE], [IDLE, STRAP], [RESET, IDLE, STRAP])

    @property
    def busy(self) -> bool:
        """True while a state waits for its time."""
        return bool(self._steps)

    def lines_to_set(self) -> list[Lines]:
        """Return the states to put on the wire now, in order, each with one TIOCMSET."""
        out, self._out = self._out, []
        return out

    def resets(self) -> list[Starts]:
        """Return what the board has been made to start since the last call."""
        resets, self._resets = self._resets, []
        return resets

    def next_deadline(self) -> float | None:
        """When `handle_timer` wants to be called, if at all."""
        if self._steps:
            return self._earliest
        return self._held_until

    def request(
        self,
        now: float,
        *,
        dtr: bool | None = None,
        rts: bool | None = None,
        at_1200: bool = False,  # noqa: ARG002 - means nothing to a circuit
    ) -> None:
        """The client sets one line or both (None: unchanged), RFC 2217 SET-CONTROL 8-12."""
        before = self.wanted
        self.wanted = before.with_changes(dtr, rts)
        if self._held_until is not None:
            self._resolve_held(now, repeats=self.wanted == before, rts_commanded=rts is not None)
        else:
            is_whole = dtr is not None and rts is not None
            # `RTS on` while it is on, then `DTR off`: this state is meant, not only passed.
            means_reset = self._last == BOTH and self._since_both == [("rts", True)]
            self._enter(self.wanted, now, is_whole=is_whole or means_reset)
        self._look_for_hard_reset(before, dtr=dtr, rts=rts)
        self._look_for_toggle(now, dtr=dtr, rts=rts)
        self._advance(now)

    def forget_commands(self) -> None:
        """Another client sends the next command: it continues nothing of what was sent before."""
        self._latest.clear()
        self._since_both.clear()

    def release(self, now: float, *, at_1200: bool = False) -> None:  # noqa: ARG002
        """The client has left: bring the board to where it runs its app, lines off.

        One step from every state, so that no board is reset by a disconnect; only a client that
        left between EN's release and the end of its bootloader entry has the board reset, for
        it would stay in the bootloader, unused. An entry that the client has
        sent to its end is carried out: another client may be meant to find the bootloader.
        """
        self._held_until = None
        self.wanted = IDLE
        self.forget_commands()
        if self.is_finishing:
            if self._steps[-1] == STRAP:
                self._steps.pop()
            self._steps[-1] = IDLE
            return
        self._steps.clear()
        if self.applied == STRAP and self.strap_follows_reset:
            self._steps.append(RESET)
        self._enter(IDLE, now)
        self._advance(now)

    def enter_bootloader(self, now: float) -> None:
        """Reset the board into its bootloader, asked for by the gateway and not by a client.

        Ends with both lines off, whatever they were before and whatever was under way.
        """
        self._play(now, RESET, STRAP, IDLE)

    def reset(self, now: float) -> None:
        """Reset the board into its app; otherwise as `enter_bootloader`."""
        self._play(now, RESET, IDLE)

    def handle_timer(self, now: float) -> None:
        """A deadline has passed: apply what waited for it."""
        if self._held_until is not None and not self._steps and now >= self._held_until:
            self._held_until = None
            self._steps.append(self.wanted)
        self._advance(now)

    def board_away(self, now: float) -> None:
        """The board has left the bus; what was requested goes on, unseen."""

    def _play(self, now: float, *states: Lines) -> None:
        self._held_until = None
        self.forget_commands()
        self.wanted = IDLE
        self._steps = deque(states)
        if self.applied == RESET:
            self._steps.popleft()
        self._advance(now)

    @property
    def _last(self) -> Lines:
        return self._steps[-1] if self._steps else self.applied

    def _enter(self, lines: Lines, now: float, *, is_whole: bool = False) -> None:
        """Go to `lines`; an edge that the client has given whole is never held back."""
        if lines == self._last:
            return
        if (self._last, lines) in _HELD_EDGES and not is_whole:
            self._held_until = now + self._hold_s
        else:
            self._steps.append(lines)

    def _resolve_held(self, now: float, *, repeats: bool, rts_commanded: bool) -> None:
        """The client's next command tells what the held edge was the first half of."""
        if repeats:
            # `DTR off` then `RTS on` again is esptool's classic reset straight after open.
            if self._last == BOTH and rts_commanded:
                self._held_until = None
                self._steps.append(RESET)
            return
        self._held_until = None
        if self._last == BOTH and self.wanted == BOTH:
            # DTR off and on again with RTS on all the time is a whole reset pulse.
            self._steps.append(RESET)
        self._enter(self.wanted, now)

    def _look_for_hard_reset(self, before: Lines, *, dtr: bool | None, rts: bool | None) -> None:
        """Do what was meant where DTR, still on after open, keeps RTS from EN."""
        if self.wanted == BOTH and before != BOTH:
            self._since_both = []
            return
        # Commands of one segment come as one request.
        self._since_both += [("rts", rts)] if rts is not None else []
        self._since_both += [("dtr", dtr)] if dtr is not None else []
        if self._since_both == _HARD_RESET_WITH_DTR_ON and self.wanted == STRAP:
            self._steps.extend((RESET, IDLE, STRAP))
        del self._since_both[len(_HARD_RESET_WITH_DTR_ON) + 1 :]  # it can no longer match

    def _look_for_toggle(self, now: float, *, dtr: bool | None, rts: bool | None) -> None:
        """Reset the board where a client takes both lines off and on again without a pause.

        Its commands must not be the client's first: those are the states that it opens with.
        """
        if now > self._commanded_at + self._hold_s:
            del self._latest[:-1]  # one is enough to tell that it has sent others before
        self._commanded_at = now
        self._latest += [("dtr", dtr)] if dtr is not None else []
        self._latest += [("rts", rts)] if rts is not None else []
        if self._latest[-len(_TOGGLE) :] == _TOGGLE and len(self._latest) > len(_TOGGLE):
            self._steps.extend((RESET, BOTH))
        del self._latest[: -len(_TOGGLE) - 1]

    def _advance(self, now: float) -> None:
        while self._steps and now >= self._earliest:
            lines = self._steps.popleft()
            self.strap_follows_reset = lines == STRAP and self.applied == RESET
            if lines == RESET:
                self._earliest = now + MIN_RESET_S
            elif self.applied == RESET:
                self._earliest = now + MIN_STRAP_S
            else:
                self._earliest = now
            if RESET in (lines, self.applied):
                self._latest = [("reset", True)]  # the end of a reset does not begin a toggle
            if self.applied == RESET:
                self._resets.append(Starts.BOOTLOADER if lines == STRAP else Starts.APP)
            self.applied = lines
            self._out.append(lines)


@dataclass(frozen=True, slots=True)
class _Step:
    """Something to do, so long after the step before has been done; None is just the time."""

    pause_s: float
    what: Lines | Baudrate | None


#: What a client that plays USB-Serial/JTAG's own sequence goes through, once it is recognised.
_USB_JTAG_PATH = frozenset({(STRAP, BOTH), (BOTH, RESET), (RESET, IDLE)})

#: How long after a board's return an entry of its bootloader counts as one more try of the one
#: that has made it leave. Tries of esptool are 2.3 s apart over a network; a board on USB-OTG
#: needs up to 2.5 s to come back, and each reset sends it away again.
_RETRY_S = 3.0
#: A board that leaves the bus later than this after a reset leaves for another reason.
_LEAVES_WITHIN_S = 2.0

#: How long DTR and the baud rate stay as they are after a touch. Arduino cores wait for 250 ms
#: before they restart, and don't if either changes (ArduinoCore-samd, CDC.cpp).
AFTER_TOUCH_S = 0.35


class _SequencePlayer:
    """The lines as a board sees them, and the sequence that is being played on them.

    Members are those of `LineController`; `busy` is also True while a sequence is played. A step
    that is done late makes the next as late: a pause is never shorter than it should be.
    """

    def __init__(self, strategy: ResetStrategy) -> None:
        self._adopt(strategy)

    def _adopt(self, strategy: ResetStrategy) -> None:
        self._strategy = strategy
        self.applied = strategy.rest
        self._plan: deque[_Step] = deque()
        self._last_done_at = float("-inf")
        self._out: list[Lines | Baudrate] = []
        self._resets: list[Starts] = []
        self._baud_changed = False

    def lines_to_set(self) -> list[Lines | Baudrate]:
        """Return what to do on the wire now, in order."""
        out, self._out = self._out, []
        return out

    def resets(self) -> list[Starts]:
        """Return what the board has been made to start since the last call."""
        resets, self._resets = self._resets, []
        return resets

    def enter_bootloader(self, now: float) -> None:
        """Reset the board into its bootloader, at the gateway's own request.

        The client's lines are off (`PassThrough`: at rest) afterwards, whatever was under way.
        """
        self._play_own(self._strategy.bootloader, Starts.BOOTLOADER, now)

    def reset(self, now: float) -> None:
        """Reset the board into its app; otherwise as `enter_bootloader`."""
        self._play_own(self._strategy.hard, Starts.APP, now)

    def _play_own(self, sequence: ResetSequence, starts: Starts, now: float) -> None:
        raise NotImplementedError

    @property
    def _is_playing(self) -> bool:
        """True until the last step has been done and its pause is over."""
        return bool(self._plan)

    @property
    def _next_time(self) -> float | None:
        return self._last_done_at + self._plan[0].pause_s if self._plan else None

    def _show(self, lines: Lines) -> None:
        """Put a state on the lines, now."""
        if lines != self.applied:
            self._do(lines)

    def _play(self, sequence: ResetSequence, starts: Starts, now: float) -> None:
        """Play a sequence from the rest state, behind what is being played."""
        rest = self._strategy.rest
        self._resets.append(starts)
        if not self._plan:
            self._show(rest)
            self._last_done_at = now
        at_s = 0.0
        for step in sequence.timed(rest, rest):
            self._plan.append(_Step(step.after_s - at_s, step.what))
            at_s = step.after_s
        if sequence.duration_s > at_s:
            self._plan.append(_Step(sequence.duration_s - at_s, None))
        self._advance(now)

    def _wait(self, seconds: float, now: float) -> None:
        """Do nothing for so long, behind what is being played."""
        if not self._plan:
            self._last_done_at = now
        self._plan.append(_Step(seconds, None))

    def _stop(self) -> None:
        """Break off what is being played: lines at rest, baud rate as before."""
        self._plan.clear()
        self._show(self._strategy.rest)
        if self._baud_changed:
            self._do(Baudrate(None))

    def _drop_plan(self) -> None:
        """The board has gone, with what was being played; it comes back with its lines at rest."""
        self._plan.clear()
        self.applied = self._strategy.rest
        if self._baud_changed:
            self._do(Baudrate(None))

    def _advance(self, now: float) -> None:
        """Do the steps whose time has come."""
        while (time := self._next_time) is not None and now >= time:
            step = self._plan.popleft()
            self._last_done_at = now
            if step.what is not None:
                self._do(step.what)

    def _do(self, what: Lines | Baudrate) -> None:
        if isinstance(what, Lines):
            self.applied = what
        else:
            self._baud_changed = what.bps is not None
        self._out.append(what)


class IntentController(_SequencePlayer):
    """Understands a client that plays the classic sequence; the board gets its own.

    `wanted` is the client's target, `applied` the wire's state. While a sequence is played it is
    `busy`. The wire rests otherwise, but while a client plays USB-Serial/JTAG's own sequence to
    such a board: then the client's states are the wire's.
    """

    def __init__(self, strategy: ResetStrategy, hold_s: float = DEFAULT_HOLD_S) -> None:
        super().__init__(strategy)
        self._hold_s = hold_s
        self._circuit = LineController(hold_s)
        self._understood = IDLE  # the last state of the circuit that has been looked at,
        self._before_that = IDLE  # and the one before it
        self._follows = False  # the client plays the board's own sequence
        self._plays_usb_jtag = False  # the client takes the board for USB-Serial/JTAG
        self._abandoned = False  # no client is left to end the reset under way
        self._last_entry = float("-inf")  # when the board was last sent into its bootloader
        self._is_retry_until = float("-inf")  # an entry until then is the last one again

    @property
    def wanted(self) -> Lines:
        """The client's target."""
        return self._circuit.wanted

    @property
    def busy(self) -> bool:
        """True while a sequence is played or a state of the client waits for its time."""
        return self._circuit.busy or self._is_playing

    def next_deadline(self) -> float | None:
        """When `handle_timer` wants to be called, if at all."""
        times = (self._circuit.next_deadline(), self._next_time)
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
                self._show(STRAP)

    def forget_commands(self) -> None:
        """Another client sends the next command."""
        self._circuit.forget_commands()

    def release(self, now: float, *, at_1200: bool = False) -> None:
        """The client has left: its board runs its app, or the bootloader that it has asked for.

        A reset or an entry that the client has sent to its end is carried out; a client that
        left in the middle of an entry has its board restarted, other clients have not. A client
        that leaves at 1200 baud with DTR on has touched the board, as by closing a local port.
        """
        is_complete = self._circuit.is_finishing
        in_entry = self._understood == STRAP and self._circuit.strap_follows_reset
        if self._takes_touch(at_1200=at_1200) and not is_complete and not in_entry:
            self._touch(now, IDLE)
            return
        was_followed_into_reset = self._follows and self.applied == RESET
        if not is_complete:
            self._abandoned = self._understood == RESET
            if in_entry or self._follows:
                self._stop()
            self._follows = False
        self._circuit.release(now)
        self._understand(now)
        if was_followed_into_reset and not is_complete:
            self._play(self._strategy.hard, Starts.APP, now)

    def handle_timer(self, now: float) -> None:
        """A deadline has passed."""
        self._advance(now)
        self._circuit.handle_timer(now)
        self._understand(now)

    def board_away(self, now: float) -> None:
        """The board has left the bus, its client stays: nothing more is played to it.

        An entry that the client tries again while the board comes back is not played again.
        """
        self._drop_plan()
        self._follows = False
        self._abandoned = self._understood == RESET
        takes_s = self._strategy.bootloader.duration_s + _LEAVES_WITHIN_S
        has_obeyed = now - self._last_entry <= takes_s
        self._is_retry_until = float("inf") if has_obeyed else float("-inf")

    def board_back(self, strategy: ResetStrategy, now: float) -> None:
        """The board is on the bus again, its lines at rest."""
        self._adopt(strategy)
        self._is_retry_until = min(self._is_retry_until, now + _RETRY_S)

    def _play_own(self, sequence: ResetSequence, starts: Starts, now: float) -> None:
        if starts is Starts.BOOTLOADER:
            self._last_entry = now
        self._forget_client()
        self._stop()
        self._play(sequence, starts, now)

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
        self._play(TOUCH_1200, Starts.BOOTLOADER, now)

    def _understand(self, now: float) -> None:
        for lines in self._circuit.lines_to_set():
            before, self._understood = self._understood, lines
            self._before_that = before
            if self._follows:
                self._show(lines)
                if lines == RESET:
                    self._resets.append(Starts.BOOTLOADER)
                self._follows = lines != IDLE
            elif before == RESET and not self._abandoned:
                if lines == STRAP or self._plays_usb_jtag:
                    self._enter(now)
                else:
                    self._play(self._strategy.hard, Starts.APP, now)
            self._abandoned = self._abandoned and lines == RESET
            goes_on = (before, lines) in _USB_JTAG_PATH and lines != IDLE
            self._plays_usb_jtag = self._plays_usb_jtag and goes_on

    def _enter(self, now: float) -> None:
        if now > self._is_retry_until:
            self._last_entry = now
            self._play(self._strategy.bootloader, Starts.BOOTLOADER, now)
        elif self._is_retry_until < float("inf"):
            self._is_retry_until = float("-inf")  # a second one is meant

    def _begins_usb_jtag(self, before: Lines, *, dtr: bool | None, rts: bool | None) -> bool:
        """Whether this command shows that the client knows what board it has.

        `DTR on` from idle is the first half of pyserial's open() as well, but then `RTS on`
        follows. Only a client that means the state sends `RTS off` when it is off already.
        """
        if rts is not False:
            return False
        is_strap_from_idle = (self._before_that, self._understood) == (IDLE, STRAP)
        return is_strap_from_idle and (before == STRAP or dtr is True)


class PassThrough(_SequencePlayer):
    """The client's lines as they come, one step on the wire for each command.

    They go back to rest, in one step, when the client has left. The gateway's own resets are the
    strategy's.
    """

    def __init__(self, strategy: ResetStrategy) -> None:
        super().__init__(strategy)
        self.wanted = strategy.rest

    @property
    def busy(self) -> bool:
        """True while a reset of the gateway's own or a touch is played."""
        return self._is_playing

    def next_deadline(self) -> float | None:
        """When `handle_timer` wants to be called, if at all."""
        return self._next_time

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
        self.wanted = self.wanted.with_changes(dtr, rts)
        if self._is_playing:
            return
        if self._strategy.has_circuit and self.applied == RESET != self.wanted:
            enters = self.wanted == STRAP
            self._resets.append(Starts.BOOTLOADER if enters else Starts.APP)
        is_touch = at_1200 and self.applied.dtr and not self.wanted.dtr
        self._show(self.wanted)
        if is_touch:
            self._resets.append(Starts.BOOTLOADER)
            self._wait(AFTER_TOUCH_S, now)

    def forget_commands(self) -> None:
        """Another client sends the next command: each passes by itself."""

    def release(self, now: float, *, at_1200: bool = False) -> None:
        """The client has left: lines at rest in one step, when what is played is over.

        At 1200 baud with DTR on this is a touch, as closing a local port is.
        """
        self.wanted = self._strategy.rest
        if self._is_playing:
            return
        if at_1200 and self.applied.dtr:
            self._resets.append(Starts.BOOTLOADER)
            self._show(IDLE)
            self._wait(AFTER_TOUCH_S, now)
        else:
            self._show(self.wanted)

    def handle_timer(self, now: float) -> None:
        """A deadline has passed."""
        self._advance(now)
        if not self._is_playing:
            self._show(self.wanted)

    def board_away(self, now: float) -> None:  # noqa: ARG002
        """The board has left the bus: nothing more is played to it."""
        self._drop_plan()

    def _play_own(self, sequence: ResetSequence, starts: Starts, now: float) -> None:
        self.wanted = self._strategy.rest
        self._stop()
        if sequence.steps:
            self._play(sequence, starts, now)


Controller = LineController | IntentController | PassThrough


def controller_for(strategy: ResetStrategy, hold_s: float = DEFAULT_HOLD_S) -> Controller:
    """Return what plays this strategy; edges are held back for `hold_s` at most."""
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
    """Return what plays on when a board is back on the bus, its lines at rest.

    The same device may have come back as another, its bootloader as USB-Serial/JTAG for instance.
    """
    if isinstance(before, IntentController) and strategy.method is Method.INTENT:
        before.board_back(strategy, now)
        return before
    controller = controller_for(strategy, hold_s)
    if before.wanted == BOTH:  # a client that waits: neither resets nor straps
        controller.request(now, dtr=True, rts=True)
    return controller
