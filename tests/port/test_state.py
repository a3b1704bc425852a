"""Wanted and applied state of a port: whatever happens in whatever order, the tty ends as wanted.

A model of the tty carries the actions out in their order, or loses them. Clients ask, are suspended
and resumed, leave; the board leaves the bus and returns. In the end all that was asked for was
answered once, in the client's order, and the tty has what is wanted.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import pytest
from hypothesis import settings as profile
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gateway.port.state import (
    Action,
    Apply,
    Purge,
    ReadStates,
    Reconciler,
    SetBreak,
    SetLines,
    View,
)
from gateway.protocol.access_server import PortStatus
from gateway.protocol.reset import IDLE, RESET, Lines, ResetChoice, Starts
from gateway.protocol.serial_settings import SerialSettings

AT_REST = SerialSettings()
REFUSED = 1_234_567  # a rate that the driver does not have
RATES = st.sampled_from([AT_REST.baudrate, 9600, 921600, REFUSED])
LINES = st.sampled_from([None, False, True])

#: Longer than an edge is held back, so that two requests are not taken for one sequence.
PAUSE_S = 5.0


class Tty:
    """An open tty: carries out actions, some of which overtake the others."""

    def __init__(self) -> None:
        self.status = PortStatus(AT_REST, IDLE)
        self.seen_lines: list[Lines] = []
        self.queue: list[Action] = []

    def do(self, action: Action) -> object:
        self.queue.remove(action)
        match action:
            case Apply(settings):
                rate = settings.baudrate
                rate = self.status.settings.baudrate if rate == REFUSED else rate
                self.status = replace(self.status, settings=replace(settings, baudrate=rate))
                return self.status.settings
            case SetLines(lines):
                self.status = replace(self.status, lines=lines)
                self.seen_lines.append(lines)
            case SetBreak(on):
                self.status = replace(self.status, break_on=on)
        return None

    @property
    def next(self) -> Action:
        """What is done next: purges and questions wait for nothing."""
        at_once = [each for each in self.queue if isinstance(each, (Purge, ReadStates))]
        return (at_once or self.queue)[0]


class PortMachine(RuleBasedStateMachine):
    """Clients of a `preempt` port: the last that came controls it, the others are suspended."""

    #: Whether clients move one line at a time, as sequences that reset a board do.
    moves_single_lines = True

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.reconciler = Reconciler(AT_REST, ResetChoice())
        self.tty: Tty | None = None
        self.ttys: list[Tty] = []
        self.clients: list[View] = []
        self.tokens = count()
        self.asked: dict[View | None, list[int]] = {}
        self.in_order: dict[int, View] = {}  # settings and breaks, by the client that asked
        self.latest: dict[View, int] = {}
        self.answered: list[int] = []

    def teardown(self) -> None:
        if self.tty is None:
            self.returns()
        self.settles()
        assert self.tty is not None
        assert self.tty.status == self.reconciler.status() == self.reconciler.applied
        asked = [token for tokens in self.asked.values() for token in tokens]
        assert sorted(asked) == sorted(self.answered)

    # --- the tty

    @initialize()
    def opens(self) -> None:
        self.tty = Tty()
        self.ttys.append(self.tty)
        self.reconciler.opened(AT_REST, None)
        self.carry_on()

    @precondition(lambda self: self.tty is not None and self.tty.queue)
    @rule()
    def tty_works(self) -> None:
        assert self.tty is not None
        action = self.tty.next
        self.reconciler.done(action, self.tty.do(action), self.now)
        self.carry_on()

    @precondition(lambda self: self.tty is not None)
    @rule()
    def board_leaves(self) -> None:
        self.tty = None
        self.reconciler.lost(self.now)
        self.carry_on()

    @precondition(lambda self: self.tty is None)
    @rule()
    def returns(self) -> None:
        self.tty = Tty()
        self.ttys.append(self.tty)
        self.reconciler.returned(AT_REST, None, self.now)
        self.carry_on()

    @rule(seconds=st.sampled_from([0.0, 0.02, 0.1, PAUSE_S]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        if (deadline := self.reconciler.lines.deadline) is not None and deadline <= self.now:
            self.reconciler.handle_timer(self.now)
        self.carry_on()

    def settles(self) -> None:
        """Let all that is under way end."""
        lines = self.reconciler.lines
        while (self.tty is not None and self.tty.queue) or lines.deadline is not None:
            if self.tty is not None and self.tty.queue:
                self.tty_works()
            else:
                assert lines.deadline is not None
                self.now = max(self.now, lines.deadline)
                self.reconciler.handle_timer(self.now)
                self.carry_on()

    def carry_on(self) -> None:
        actions = list(self.reconciler.actions)
        self.reconciler.actions.clear()
        if self.tty is not None:
            self.tty.queue += actions
        else:
            for action in actions:
                assert isinstance(action, Purge)  # of bytes that wait for the board
                self.reconciler.done(action, None, self.now)
        self.reconciler.lines.events.clear()
        while self.reconciler.results:
            token, result = self.reconciler.results.popleft()
            if isinstance(token, int):
                assert token not in self.answered, "answered twice"
                assert result is None or isinstance(result, (PortStatus, SerialSettings))
                self.answered.append(token)
                if (view := self.in_order.get(token)) is not None:
                    assert token > self.latest.get(view, -1), "answered out of order"
                    self.latest[view] = token

    # --- clients

    @property
    def controller(self) -> View | None:
        return self.clients[-1] if self.clients else None

    def token(self, view: View | None, *, in_order: bool = False) -> int:
        token = next(self.tokens)
        self.asked.setdefault(view, []).append(token)
        if view is not None and in_order:
            self.in_order[token] = view
        return token

    @rule()
    def client_comes(self) -> None:
        """Whoever has control is suspended, and what it has set goes to rest."""
        if self.controller is not None:
            self.reconciler.suspend(self.controller)
            self.carry_on()
        self.clean_up()
        self.clients.append(View())

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def client_leaves(self, data: st.DataObject) -> None:
        view = data.draw(st.sampled_from(self.clients))
        was_controller = view is self.controller
        self.clients.remove(view)
        self.reconciler.leave(view, self.now, others_stay=False)
        self.carry_on()
        if was_controller and self.tty is None:
            self.reconciler.forget_clients(self.now)
            self.carry_on()
        elif was_controller:
            self.clean_up()
        if was_controller and self.controller is not None:
            self.reconciler.resume(self.controller, self.now)
            self.carry_on()

    def clean_up(self) -> None:
        """What the port does between two clients, each step after the one before."""
        self.pause()
        self.reconciler.drain(self.token(None))
        self.settles()
        if self.reconciler.break_on:
            self.reconciler.set_break(None, False, self.token(None))
            self.settles_now()
        self.reconciler.release_lines(self.now, self.token(None), has_left=True)
        self.settles_now()
        if self.reconciler.settings != AT_REST:
            self.reconciler.set_settings(None, AT_REST, self.token(None))
            self.settles_now()

    def settles_now(self) -> None:
        self.carry_on()
        self.settles()

    def pause(self) -> None:
        self.now += PAUSE_S
        self.time_passes(0.0)

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), rate=RATES)
    def asks_for_settings(self, data: st.DataObject, rate: int) -> None:
        view = data.draw(st.sampled_from(self.clients))
        wanted = replace(self.reconciler.status(view).settings, baudrate=rate)
        self.reconciler.set_settings(view, wanted, self.token(view, in_order=True))
        self.carry_on()

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), dtr=LINES, rts=LINES)
    def asks_for_lines(self, data: st.DataObject, dtr: bool | None, rts: bool | None) -> None:
        view = data.draw(st.sampled_from(self.clients))
        if not self.moves_single_lines:
            if not set(self.asked.get(view, [])) <= set(self.answered):
                return  # a client's requests wait for each other
            self.pause()
            dtr = rts = bool(dtr)
        elif dtr is None and rts is None:
            return
        self.reconciler.set_lines(view, self.now, self.token(view), dtr=dtr, rts=rts)
        self.carry_on()

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), on=st.booleans())
    def asks_for_a_break(self, data: st.DataObject, on: bool) -> None:
        view = data.draw(st.sampled_from(self.clients))
        self.reconciler.set_break(view, on, self.token(view, in_order=True))
        self.carry_on()

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), receive=st.booleans())
    def asks_for_a_purge(self, data: st.DataObject, receive: bool) -> None:
        view = data.draw(st.sampled_from(self.clients))
        self.reconciler.purge(view, self.token(view), receive=receive, transmit=not receive)
        self.carry_on()

    @rule()
    def asks_for_states(self) -> None:
        self.reconciler.read_states(self.token(None))
        self.carry_on()

    @precondition(lambda self: self.moves_single_lines)
    @rule(starts=st.sampled_from(Starts))
    def is_reset(self, starts: Starts) -> None:
        self.reconciler.start(starts, self.now, self.token(None))
        self.carry_on()

    # --- always

    @invariant()
    def a_suspended_client_has_no_open_request(self) -> None:
        for view in self.clients[:-1]:
            assert set(self.asked.get(view, [])) <= set(self.answered)

    @invariant()
    def what_is_applied_is_what_the_tty_has(self) -> None:
        if self.tty is not None and not self.tty.queue:
            assert self.reconciler.applied == self.tty.status


class AttachingMachine(PortMachine):
    """Clients that only attach: both lines on, or both off, with a pause before."""

    moves_single_lines = False

    @invariant()
    def no_board_is_reset(self) -> None:
        assert not any(RESET in tty.seen_lines for tty in self.ttys)


@pytest.mark.parametrize("machine", [PortMachine, AttachingMachine])
def test_the_tty_ends_as_wanted_and_every_request_is_answered_once(
    machine: type[PortMachine],
) -> None:
    run_state_machine_as_test(
        machine, settings=profile(max_examples=200, stateful_step_count=40, deadline=None)
    )


def test_requests_of_one_client_are_answered_in_their_order() -> None:
    reconciler = Reconciler(AT_REST, ResetChoice())
    reconciler.opened(AT_REST, None)
    view, tty = View(), Tty()
    for token, rate in enumerate((9600, 19200, 38400)):
        reconciler.set_settings(view, replace(AT_REST, baudrate=rate), token)
    reconciler.set_break(view, True, 3)
    tty.queue = list(reconciler.actions)
    assert not reconciler.results
    while tty.queue:
        action = tty.next
        reconciler.done(action, tty.do(action), 0.0)
    assert [token for token, _ in reconciler.results] == [0, 1, 2, 3]


def test_settings_that_change_twice_while_the_board_is_away_reach_it_once() -> None:
    reconciler = Reconciler(AT_REST, ResetChoice())
    reconciler.opened(AT_REST, None)
    view = View()
    reconciler.lost(1.0)
    for token, rate in enumerate((9600, 921600)):
        reconciler.set_settings(view, replace(AT_REST, baudrate=rate), token)
    assert [token for token, _ in reconciler.results] == [0, 1]
    reconciler.returned(AT_REST, None, 2.0)
    rates = [a.settings.baudrate for a in reconciler.actions if isinstance(a, Apply)]
    assert rates == [921600]


def test_a_break_that_was_begun_and_not_ended_begins_again_with_the_board() -> None:
    reconciler = Reconciler(AT_REST, ResetChoice())
    reconciler.opened(AT_REST, None)
    view = View()
    reconciler.set_break(view, True, 0)
    reconciler.lost(1.0)
    reconciler.set_break(view, False, 1)
    reconciler.set_break(view, True, 2)
    reconciler.actions.clear()
    reconciler.returned(AT_REST, None, 2.0)
    assert [a.on for a in reconciler.actions if isinstance(a, SetBreak)] == [True]
