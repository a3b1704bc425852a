"""DTR and RTS of one ESP board: the line controller that makes resets survive a network.

The auto-reset circuit of ESP boards (two transistors) holds EN low only while RTS is on and
DTR off, and IO0 low only while DTR is on and RTS off. EN rises over an RC; the chip samples IO0
at that moment. A client moves one line at a time, and over a network 50 ms and more lie between
two moves, so the pair passes through states that a local client never dwells in. The controller
keeps what the client wants apart from what the wire shows and lets only the meant states through.

Pure logic: times are arguments (seconds of any monotonic clock), the line changes to make are
fetched with `lines_to_set`. Who sets them, and what a board needs beyond the classic circuit,
is others' matter.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum

#: How long an edge may be held back for the client's next command. pyserial looks for the answer
#: every 50 ms, so two commands are up to the round trip and 76 ms apart (measured): 1.5 s serves
#: links of 1 s round trip with jitter. Holding a reset longer is harmless.
DEFAULT_HOLD_S = 1.5

#: Shortest reset that is put on the wire, and shortest time that IO0 then stays for the boot
#: ROM to sample it. Clients wait 100 and 50 ms; a network that delivers their commands in a bunch
#: would shrink that to nothing. EN of the slowest common board (10 ms RC) crosses the chip's
#: threshold (0.75 VDD) after 14 ms.
MIN_RESET_S = 0.05
MIN_STRAP_S = 0.05


@dataclass(frozen=True, slots=True)
class Lines:
    """The two modem lines; True is asserted, as in pyserial."""

    dtr: bool
    rts: bool

    def __str__(self) -> str:
        return f"DTR {'on' if self.dtr else 'off'}, RTS {'on' if self.rts else 'off'}"


class Starts(Enum):
    """What a board starts at the end of a reset."""

    APP = "app"
    BOOTLOADER = "bootloader"


#: EN and IO0 both high: the board runs what it runs.
IDLE = Lines(dtr=False, rts=False)
#: EN and IO0 both high as well: what pyserial's open() leaves.
BOTH = Lines(dtr=True, rts=True)
#: EN low: the chip is held in reset.
RESET = Lines(dtr=False, rts=True)
#: IO0 low: a chip that comes out of reset now enters its bootloader.
STRAP = Lines(dtr=True, rts=False)

#: The two edges that a client may be only half way through, and what is held back with them:
#: RESET -> BOTH: the first half of "release EN with IO0 low" (`DTR on` before `RTS off`). Let
#:   through, EN is up long before IO0 is low: the chip boots its app.
#: BOTH -> RESET: either the first half of "both off" (`DTR off` before `RTS off`, as clients do
#:   right after open) or the start of a reset. Let through, attaching a monitor resets the board.
_HELD_EDGES = frozenset({(RESET, BOTH), (BOTH, RESET)})

#: What Espressif's tools send for a hard reset straight after open, when both lines are on: each
#: RTS command with the DTR in force behind it (esp_pylib.serial_reset.set_rts). No other client
#: says RTS on again, and nobody wants IO0 low at the end of it.
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
        """The states to put on the wire now, in order, each with one TIOCMSET."""
        out, self._out = self._out, []
        return out

    def resets(self) -> list[Starts]:
        """What the board has been told to start since the last call."""
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
        self.wanted = Lines(
            dtr=before.dtr if dtr is None else dtr, rts=before.rts if rts is None else rts
        )
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
        it would stay in the bootloader with nobody to talk to. An entry that the client has
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
        """The board has left the bus; what has been asked for goes on, unseen."""

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
        del self._since_both[len(_HARD_RESET_WITH_DTR_ON) + 1 :]  # it can't match any more

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
