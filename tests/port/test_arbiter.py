"""The rules of `sharing` as the arbiter has them; clients see them in scenarios/test_sharing.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import pytest

from gateway.config.document import Sharing
from gateway.port.arbiter import TAKE_BACK_AFTER_S, WAIT_S, Arbiter, Dismissed, OnContender

if TYPE_CHECKING:
    from gateway.port.claim import Claim


@dataclass(eq=False)
class Asking:
    """A claim, as far as the rules look at it."""

    label: str
    origin: str = ""
    is_leaving: bool = False


def claim(label: str, origin: str = "") -> Claim:
    return cast("Claim", Asking(label, origin))


A, B, C = claim("A"), claim("B"), claim("C")


def controlled(*claims: Claim, sharing: Sharing = Sharing.PREEMPT) -> Arbiter:
    """A port that these have got, one after the other."""
    arbiter = Arbiter(sharing)
    for each in claims:
        arbiter.admit(each)
    arbiter.grant()
    return arbiter


@pytest.mark.parametrize(
    ("sharing", "rule"),
    [
        (Sharing.EXCLUSIVE, OnContender.WAIT),
        (Sharing.TAKEOVER, OnContender.REPLACE),
        (Sharing.PREEMPT, OnContender.SUSPEND),
        (Sharing.SHARED, OnContender.JOIN),
    ],
)
def test_each_kind_of_sharing_has_its_rule(sharing: Sharing, rule: OnContender) -> None:
    assert Arbiter(sharing).on_contender is rule


@pytest.mark.parametrize(
    ("controllers", "suspended", "says"),
    [
        ([], [A, B], "in use by A, B"),
        ([A], [], "in use by A since "),
        ([A, B], [C], "in use by A, B since "),
    ],
)
def test_a_rejection_names_the_clients(
    controllers: list[Claim], suspended: list[Claim], says: str
) -> None:
    arbiter = controlled(*suspended)
    arbiter.suspend()
    for each in controllers:
        arbiter.admit(each)
    assert arbiter.in_use.startswith(says)
    assert (arbiter.controlled_since is None, arbiter.since_text == "") == (
        not controllers,
        not controllers,
    )
    assert (list(arbiter), len(arbiter)) == (
        [*controllers, *suspended],
        len(controllers) + len(suspended),
    )


@pytest.mark.parametrize(("leaver", "is_last"), [(A, False), (C, True), (B, False)])
def test_leaving_reports_the_end_of_control(leaver: Claim, is_last: bool) -> None:
    arbiter = controlled(A)
    arbiter.suspend()
    arbiter.admit(C)
    assert arbiter.leave(leaver) is is_last


def test_control_returns_to_the_client_that_was_suspended_last() -> None:
    arbiter = controlled(A)
    for newcomer in (B, C):
        arbiter.suspend()
        arbiter.admit(newcomer)
    assert list(arbiter.audience) == [A, B]  # C's board is being prepared
    arbiter.grant()
    assert list(arbiter.audience) == [C, A, B]
    resumed = []
    for leaver in (C, B, A):
        assert arbiter.leave(leaver)
        resumed.append(arbiter.resume())
    assert resumed == [B, A, None]


def test_the_wait_queue_keeps_places_and_gives_more_time() -> None:
    arbiter = controlled(C)
    assert (arbiter.has_waiting, arbiter.deadline) == (False, None)
    arbiter.wait(A, 0.0)
    arbiter.wait(B, 0.1)
    arbiter.wait(A, 0.2)
    assert arbiter.deadline == 0.1 + WAIT_S
    assert arbiter.overdue(0.1 + WAIT_S) == [B]
    assert arbiter.overdue(0.2 + WAIT_S) == [A, B]
    assert arbiter.next_waiting(0.2) is A
    arbiter.stop_waiting(A)
    arbiter.stop_waiting(A)
    assert (arbiter.is_waiting(A), arbiter.is_waiting(B)) == (False, True)
    assert (arbiter.take_waiting(), arbiter.has_waiting) == ([B], False)


@pytest.mark.parametrize(
    ("after_s", "is_kept_out"),
    [(0.0, True), (TAKE_BACK_AFTER_S - 0.1, True), (TAKE_BACK_AFTER_S, False)],
)
def test_a_replaced_client_is_kept_out_for_a_while(after_s: float, is_kept_out: bool) -> None:
    old, new = claim("old", "10.0.0.1"), claim("new", "10.0.0.2")
    arbiter = controlled(old, sharing=Sharing.TAKEOVER)
    assert arbiter.replace(new, 100.0) == [old]
    assert arbiter.leave(old)
    arbiter.admit(new)
    arbiter.grant()
    again = claim("again", "10.0.0.1")
    assert arbiter.keeps_out(again, 100.0 + after_s) is is_kept_out
    cast("Asking", new).is_leaving = True
    assert not arbiter.keeps_out(again, 100.0)
    assert not arbiter.may_be_followed


def test_a_client_that_was_not_replaced_is_served_before_the_one_that_was() -> None:
    old, new, other = claim("old", "10.0.0.1"), claim("new", "10.0.0.2"), claim("other", "10.0.0.3")
    arbiter = controlled(old, sharing=Sharing.TAKEOVER)
    arbiter.replace(new, 0.0)
    arbiter.leave(old)
    arbiter.wait(old, 0.0)
    assert arbiter.next_waiting(0.0) is old
    arbiter.wait(other, 0.1)
    assert arbiter.next_waiting(0.1) is other
    assert arbiter.next_waiting(TAKE_BACK_AFTER_S) is old
    arbiter.tried_to_take_back(old, TAKE_BACK_AFTER_S)
    assert arbiter.next_waiting(TAKE_BACK_AFTER_S) is other


@pytest.mark.parametrize(
    ("holding", "holds"), [([], False), ([A], False), ([B], False), ([A, B], True), ([C], False)]
)
def test_output_waits_when_no_controller_takes_it(holding: list[Claim], holds: bool) -> None:
    arbiter = controlled(C)
    arbiter.suspend()
    for each in (A, B):
        arbiter.admit(each)
    for each in holding:
        arbiter.hold(each, True)
    assert arbiter.holds_output is holds
    for each in holding:
        arbiter.hold(each, False)
    assert not arbiter.holds_output


def test_a_client_that_left_holding_output_holds_none_when_it_returns() -> None:
    arbiter = controlled(A)
    arbiter.hold(A, True)
    arbiter.leave(A)
    arbiter.admit(A)
    assert not arbiter.holds_output


@pytest.mark.parametrize("is_granted", [True, False])
def test_dismissed_claims_are_told_apart_by_what_they_had(is_granted: bool) -> None:
    arbiter = controlled(A)
    arbiter.suspend()
    arbiter.admit(B)
    if is_granted:
        arbiter.grant()
    arbiter.probe(A, True)
    assert arbiter.are_probed
    expected = Dismissed([B, A], []) if is_granted else Dismissed([A], [B])
    assert arbiter.dismiss() == expected
    assert (len(arbiter), arbiter.audience, arbiter.are_probed) == (0, (), False)


def test_a_client_that_answers_or_leaves_is_probed_no_longer() -> None:
    arbiter = controlled(A)
    arbiter.probe(A, True)
    arbiter.probe(A, False)
    assert not arbiter.are_probed
    arbiter.probe(A, True)
    arbiter.leave(A)
    assert not arbiter.are_probed
