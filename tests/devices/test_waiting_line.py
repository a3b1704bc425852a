"""Who asks for a device and has not got it yet."""

from __future__ import annotations

from gateway.devices.sharing import DeviceUser
from gateway.devices.waiting_line import WaitingLine
from tests.devices.test_device import User
from tests.support.pty_board import LoopClock


async def test_who_has_waited_too_long_is_told_unless_it_is_let_wait_on() -> None:
    overdue: list[str] = []

    def is_overdue(user: DeviceUser) -> None:
        overdue.append(user.label)
        if overdue.count("a") < 2:
            line.add(user)
        else:
            line.drop(user)

    line = WaitingLine(0.5, is_overdue)
    first, second = User("a"), User("b")
    with LoopClock() as clock:
        line.add(first)
        line.add(second)
        assert line.first is first
        line.drop(second)
        line.drop(second)
        await clock.advance(0.5)
        assert (overdue, len(line), line.first) == (["a"], 1, first)
        await clock.advance(0.5)
        assert (overdue, len(line)) == (["a", "a"], 0)
        await clock.advance(5.0)
        assert len(overdue) == 2


async def test_a_user_that_is_added_again_is_overdue_once() -> None:
    overdue: list[str] = []
    line = WaitingLine(0.5, lambda user: overdue.append(user.label))
    user = User("a")
    with LoopClock() as clock:
        line.add(user)
        await clock.advance(0.3)
        line.add(user)
        await clock.advance(0.3)
        assert overdue == []
        await clock.advance(0.3)
        assert overdue == ["a"]
        line.drop(user)


async def test_who_waits_on_keeps_its_place() -> None:
    def waits_on(user: DeviceUser) -> None:
        line.add(user)

    line = WaitingLine(0.5, waits_on)
    users = [User(name) for name in "abc"]
    for user in users:
        line.add(user)
    with LoopClock() as clock:
        await clock.advance(0.6)
    assert line.first is users[0]
    for user in users:
        line.drop(user)


async def test_all_are_refused_with_the_reason() -> None:
    line = WaitingLine(0.5, lambda _: None)
    first, second = User("a"), User("b")
    line.add(first)
    line.add(second)
    line.refuse_all("not today")
    assert first.said == second.said == ["refused: not today"]
    assert first not in line
    assert not line
