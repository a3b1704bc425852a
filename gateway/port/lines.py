"""DTR and RTS of one port over time: what clients ask for becomes steps on the tty.

Pure: times are arguments, steps and events are fetched. `protocol/reset*` decides which line
states a board may see and when; this module adds what depends on the port: steps that take their
time, a board that leaves the bus in the middle of a reset and comes back as another USB device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from gateway.protocol.board_kinds import UsbIds
from gateway.protocol.line_controller import AFTER_TOUCH_S, controller_for, controller_of_returned
from gateway.protocol.reset import BOTH, RESET, Baudrate, Lines, Method, ResetChoice, Starts

#: A board leaves the bus this soon after the end of what it was told, or for another reason.
_LEAVES_WITHIN_S = 2.0

#: At this rate DTR going off starts the bootloader of many boards: the 1200-baud touch.
_TOUCH_BAUDRATE = 1200

#: A deadline is due this much early: floating point.
_TICK_S = 1e-6


@dataclass(frozen=True, slots=True)
class Log:
    """An event for the log: its name, its level (a method of the logger), its fields."""

    event: str
    level: str
    fields: dict[str, object]


@dataclass(frozen=True, slots=True)
class BoardReset:
    """The board was reset into what it `starts`, by the strategy of this name."""

    starts: Starts
    strategy: str


@dataclass(frozen=True, slots=True)
class DropUnsent:
    """Bytes for the board that have not left are to be dropped, for this reason."""

    reason: str


LineEvent = Log | BoardReset | DropUnsent


class BoardLines:
    """One board's DTR and RTS for as long as its port is in use or waited for.

    Each of the `steps` is answered by `step_done`, in order. The
    controller's clock stands still meanwhile: unsent bytes or a slow USB device may delay a step,
    and a reset lasts from the moment that the line has moved. While the board is `away`, steps
    reach no board and are done at once.

    `settled` is called with the token of each request when what follows it may go to the board.
    An edge that is held back counts as settled: only the client's next command shows what was
    meant.
    """

    def __init__(
        self, resets: ResetChoice, usb_ids: UsbIds | None, settled: Callable[[object], None]
    ) -> None:
        self._resets = resets
        self._strategy = resets.strategy(usb_ids)
        self._controller = controller_for(self._strategy, resets.hold_s)
        self._settled = settled
        self._tokens: list[object] = []  # of requests that are not settled
        #: What to set now, in order; taken from here.
        self.steps: deque[Lines | Baudrate] = deque()
        #: What has happened, to be taken from here.
        self.events: deque[LineEvent] = deque()
        #: When `handle_timer` is to be called, if at all.
        self.deadline: float | None = None
        self._being_set = 0
        self._set_since_s = 0.0  # when being_set was last 0 and the time was looked at
        self._stood_still_s = 0.0
        self._shown = self._strategy.rest
        self._client_baudrate: int | None = None  # as a client has set it, with the board there
        self._touched = False  # a step that is being set is a touch
        self._stay_until_s: float | None = None  # nothing settles before, after a touch
        self._is_away = False
        self._has_begun = False  # a board that is away has got the first half of a reset
        self._told: Starts | None = None  # what the board was last told to start, and when
        self._told_at_s = float("-inf")
        self._obeyed: Starts | None = None  # why it is away: asking for it again is a retry
        self._owed: Starts | None = None  # what was asked for while it is away
        self._log_strategy()

    # --- what there is to do

    @property
    def wanted(self) -> Lines:
        """The lines as clients have asked for them: what a client is answered."""
        return self._controller.wanted

    @property
    def applied(self) -> Lines:
        """The lines that were last put on the wire."""
        return self._controller.applied

    @property
    def joins_lines(self) -> bool:
        """Whether commands for both lines that come together are one step."""
        return self._strategy.method is not Method.AS_THEY_COME

    # --- what is asked for

    def request(
        self, now: float, *, dtr: bool | None, rts: bool | None, token: object = None
    ) -> None:
        """Set one line or both."""
        time = self._time(now)
        self._controller.request(time, dtr=dtr, rts=rts, at_1200=self._is_at_1200)
        self._log("lines_requested", "debug", dtr=self.wanted.dtr, rts=self.wanted.rts)
        self._advance(now, token)

    def other_client(self) -> None:
        """Another client sends the next request: it continues nothing of what was sent before."""
        self._controller.forget_commands()

    def baudrate_set(self, baudrate: int) -> None:
        """A client has set this baud rate: at 1200, DTR going off starts many bootloaders."""
        self._client_baudrate = baudrate

    @property
    def is_touched_by_leaving(self) -> bool:
        """Whether a client that disconnects now touches the board by that."""
        return self._is_at_1200 and self._strategy.takes_touch and self._controller.wanted.dtr

    def release(self, now: float, *, has_left: bool = True, token: object = None) -> None:
        """Bring the lines to rest, without leaving the board in its bootloader.

        `has_left` False: the client has not disconnected, and what disconnecting means to a board
        is not done.
        """
        self._controller.release(self._time(now), at_1200=has_left and self._is_at_1200)
        self._advance(now, token)
        self._client_baudrate = None

    def start(self, starts: Starts, now: float, *, token: object = None) -> None:
        """Reset the board into its app or its bootloader; both lines are at rest afterwards.

        Anything else that was asked of the lines and is not done is dropped; it settles with this.
        """
        if problem := self.problem_of(starts):
            self._log("board_not_reset", "warning", into=starts.value, reason=problem)
        self._play(starts, now)
        self._advance(now, token)

    def problem_of(self, starts: Starts) -> str:
        """Return why no line makes the board start this; empty if one does."""
        is_app = starts is Starts.APP
        sequence = self._strategy.hard if is_app else self._strategy.bootloader
        if sequence.steps:
            return ""
        key = "hard_reset" if is_app else "reset"
        return f"no line starts the {starts.value} of this board; give its {key} a sequence"

    def when_settled(self, token: object) -> None:
        """Ask for nothing; `token` settles when what was asked before is done."""
        self._tokens.append(token)
        self._report()

    # --- what happens

    def step_done(self, now: float) -> None:
        """The oldest step that was taken is done."""
        self._being_set -= 1
        if not self._being_set:
            self._stood_still_s += now - self._set_since_s
            if self._touched:
                self._touched = False
                self._stay_until_s = now + AFTER_TOUCH_S
        self._report()

    def handle_timer(self, now: float) -> None:
        """A deadline has passed."""
        if self._stay_until_s is not None and now >= self._stay_until_s - _TICK_S:
            self._stay_until_s = None
        due_s = self._controller.next_deadline()
        is_due = due_s is not None and now >= due_s + self._stood_still_s - _TICK_S
        if due_s is not None and is_due and not self._being_set:
            self._controller.handle_timer(max(due_s, self._time(now)))
        self._advance(now)

    def board_away(self, now: float) -> None:
        """The board has left the bus, its client stays.

        What is under way reaches no board; a reset that the client asks for from here on is owed
        to the board until it is back.
        """
        self._is_away = True
        self._owed = None
        self._client_baudrate = None
        # A reset whose first half the board has got is counted at its end; by intent, at its start.
        tells_at_end = self._strategy.method is not Method.INTENT
        in_reset = self._controller.applied == RESET and not self._being_set
        self._has_begun = tells_at_end and in_reset and self._strategy.has_circuit
        self._obeyed = self._told if self._has_just_been_told(now) else None
        self.steps.clear()
        while self._being_set:
            self.step_done(now)
        self._touched = False
        self._stay_until_s = None
        self._controller.board_away(self._time(now))
        self._advance(now)

    def board_back(self, usb_ids: UsbIds | None, now: float, *, token: object) -> None:
        """The board is back, its lines at rest; it may need another strategy than before.

        A reset that it is owed is played first; `token` settles when bytes may go to it.
        """
        self._is_away = False
        before, self._strategy = self._strategy, self._resets.strategy(usb_ids)
        if self._strategy != before:
            self._log_strategy()
        self._shown = self._strategy.rest
        self._controller = controller_of_returned(
            self._controller, self._strategy, self._resets.hold_s, self._time(now)
        )
        owed, self._owed = self._owed, None
        if owed is not None:
            wanted = self._controller.wanted
            self._play(owed, now)
            if wanted == BOTH:
                self._controller.request(self._time(now), dtr=True, rts=True)
        self._advance(now, token)

    # --- inside

    @property
    def _is_at_1200(self) -> bool:
        return self._client_baudrate == _TOUCH_BAUDRATE

    def _log(self, event: str, level: str, **fields: object) -> None:
        self.events.append(Log(event, level, fields))

    def _log_strategy(self) -> None:
        if self._strategy.method is not Method.CIRCUIT:  # the usual one is not logged
            self._log("reset_strategy_selected", "info", reset=self._strategy.name)
        if not self._resets.rest.suits(self._strategy.method):
            reason = "one line alone holds the board in reset or in its bootloader"
            self._log("rest_not_used", "warning", rest=str(self._resets.rest), reason=reason)

    def _time(self, now: float) -> float:
        """Return the controller's time; it stands still from here on if lines are set now."""
        if not self._being_set:
            self._set_since_s = now
        return self._set_since_s - self._stood_still_s

    def _play(self, starts: Starts, now: float) -> None:
        if starts is Starts.BOOTLOADER:
            self._controller.enter_bootloader(self._time(now))
        else:
            self._controller.reset(self._time(now))

    def _advance(self, now: float, token: object = None) -> None:
        if token is not None:
            self._tokens.append(token)
        resets = list(self._controller.resets())
        if self._is_away:
            # First: when the lines are set, what the client has sent after them goes on.
            resets = [starts for starts in resets if not self._is_owed(starts)]
        for step in self._controller.lines_to_set():
            self._being_set += 1
            if isinstance(step, Lines):
                self._log("lines_set", "debug", dtr=step.dtr, rts=step.rts)
                self._touched |= self._is_at_1200 and self._shown.dtr and not step.dtr
                self._shown = step
            elif step.bps is not None:
                self._log("baudrate_touched", "info", baudrate=step.bps)
            if self._is_away:
                self.step_done(now)
            else:
                self.steps.append(step)
        for starts in resets:
            self._told, self._told_at_s = starts, now
            self._log("board_reset", "info", into=starts.value)
            self.events.append(BoardReset(starts, self._strategy.name))
        self._report()

    def _is_owed(self, starts: Starts) -> bool:
        """Return whether a reset that was asked for has to wait for the board, or is a retry."""
        if self._has_begun:
            self._has_begun = False
            return False
        if starts is self._obeyed:
            self._owed = None  # the board is doing it
            return True
        self._owed = starts
        self._log("board_reset_postponed", "info", into=starts.value)
        # The board would have got them before its reset.
        self.events.append(DropUnsent("the board is to be reset when it is back"))
        return True

    def _has_just_been_told(self, now: float) -> bool:
        """Return whether the board may have left because it was told to start something."""
        if self._strategy.method is Method.CIRCUIT:
            return False  # it hangs on a bridge, which does not leave with it
        takes_s = self._strategy.bootloader.duration_s + _LEAVES_WITHIN_S
        return now - self._told_at_s <= takes_s

    def _report(self) -> None:
        """Settle requests whose lines are as they asked, and look when time is up next."""
        due_s = None if self._being_set else self._controller.next_deadline()
        self.deadline = self._stay_until_s
        if due_s is not None:
            due_s += self._stood_still_s
            self.deadline = due_s if self.deadline is None else min(due_s, self.deadline)
        if not self._being_set and not self._controller.busy and self._stay_until_s is None:
            tokens, self._tokens = self._tokens, []
            for token in tokens:
                self._settled(token)
