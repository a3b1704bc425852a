"""Who drives a device and who watches, by each of the YAML's rules."""

from __future__ import annotations

from datetime import datetime
from typing import cast

import pytest

import gateway.devices.sharing
from gateway.config.document import Sharing
from gateway.devices.sharing import ARRIVALS, Arrival, DeviceUser, Users


class Named:
    """A user of which only its name matters."""

    def __init__(self, label: str, *, is_leaving: bool = False) -> None:
        self.label = label
        self.origin = label
        self.is_leaving = is_leaving


def user(label: str, *, is_leaving: bool = False) -> DeviceUser:
    return cast("DeviceUser", Named(label, is_leaving=is_leaving))


A, B, C = user("a"), user("b"), user("c")


def driven_by(*drivers: DeviceUser, sharing: Sharing = Sharing.PREEMPT) -> Users:
    users = Users(sharing)
    for each in drivers:
        users.enter(each)
    users.tell()
    return users


def state(users: Users) -> tuple[str, str]:
    return users.names, users.watchers


@pytest.mark.parametrize(
    ("sharing", "arrival"),
    [
        (Sharing.EXCLUSIVE, Arrival.WAITS),
        (Sharing.TAKEOVER, Arrival.REPLACES),
        (Sharing.PREEMPT, Arrival.MUTES),
        (Sharing.SHARED, Arrival.JOINS),
    ],
)
def test_what_a_newcomer_does_is_what_the_operator_has_chosen(
    sharing: Sharing, arrival: Arrival
) -> None:
    assert Users(sharing).arrival is arrival
    assert set(ARRIVALS) == set(Sharing)


def test_who_was_muted_last_drives_next() -> None:
    users = driven_by(A)
    assert users.mute() == [A]
    users.enter(B)
    users.tell()
    assert users.mute() == [B]
    users.enter(C)
    assert state(users) == ("c", "a, b")
    assert users.leave(C)
    assert users.resume() is B
    assert state(users) == ("b", "a")
    assert users.leave(B)
    assert users.resume() is A
    assert users.leave(A)
    assert users.resume() is None
    assert not users


def test_who_watches_may_leave_before_who_drives() -> None:
    users = driven_by(A)
    users.mute()
    users.enter(B)
    assert not users.leave(A)
    assert state(users) == ("b", "")
    assert users.leave(B)
    assert not users.leave(B)


def test_of_several_that_drive_only_the_last_leaves_the_device_to_nobody() -> None:
    users = driven_by(A, B, sharing=Sharing.SHARED)
    assert not users.leave(A)
    assert users.leave(B)


def test_the_board_is_paused_for_who_drives_and_not_for_who_watches() -> None:
    users = driven_by(A)
    users.hold(A, True)
    assert users.hold_output
    users.mute()
    assert not users.hold_output
    users.enter(B)
    assert not users.hold_output
    users.hold(B, True)
    assert users.hold_output
    users.leave(B)
    users.resume()
    assert users.hold_output  # it had not caught up when it was muted
    users.hold(A, False)
    assert not users.hold_output


def test_a_user_that_leaves_while_it_takes_no_output_leaves_no_hold() -> None:
    users = driven_by(A)
    users.hold(A, True)
    users.leave(A)
    users.enter(A)
    assert not users.hold_output


def test_of_several_that_drive_the_fastest_sets_the_pace() -> None:
    users = driven_by(A, B, sharing=Sharing.SHARED)
    users.hold(A, True)
    assert not users.hold_output
    users.hold(B, True)
    assert users.hold_output
    users.leave(A)
    users.hold(B, False)
    assert not users.hold_output


def test_output_goes_to_all_but_who_has_not_been_told() -> None:
    users = driven_by(A)
    assert [*users.audience] == [A]
    users.mute()
    users.enter(B)
    assert [*users.audience] == [A]
    users.tell()
    assert [*users.audience] == [B, A]


def test_nobody_follows_one_that_is_leaving_or_waits_for_its_board() -> None:
    users = Users(Sharing.PREEMPT)
    users.enter(A)
    assert not users.may_be_followed
    users.tell()
    assert users.may_be_followed
    assert not driven_by(user("d", is_leaving=True)).may_be_followed


def test_since_when_has_a_date_unless_it_is_today_s(monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime(2026, 3, 1, 23, 59, 59)
    monkeypatch.setattr(gateway.devices.sharing, "local_now", lambda: now)
    users = driven_by(A)
    assert users.since == "23:59:59"
    now = datetime(2026, 3, 2, 0, 0, 0)
    assert users.since == "2026-03-01 23:59:59"
    users.leave(A)
    assert users.since == ""
