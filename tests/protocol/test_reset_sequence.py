"""Reset sequences: the notation against esptool's own parser, and what comes of it on the wire."""

import pytest
from esp_pylib.serial_reset import parse_custom_reset_sequence
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol import reset as reset_sequence
from gateway.protocol.reset import (
    BOTH,
    IDLE,
    MAX_PAUSES_S,
    MAX_STEPS,
    RESET,
    STRAP,
    Baudrate,
    Lines,
    ResetSequence,
    Timed,
    parse_sequence,
)

STATES = [IDLE, BOTH, RESET, STRAP]
NAMED = {
    name: value
    for name, value in vars(reset_sequence).items()
    if isinstance(value, ResetSequence) and name != "NOTHING"
}


def wire(text: str, before: Lines = IDLE, rest: Lines = IDLE) -> list[tuple[float, object]]:
    return [(step.after_s, step.what) for step in parse_sequence(text).timed(before, rest)]


def test_lines_one_by_one_are_steps_of_their_own() -> None:
    assert wire("D0|R1|W0.1|D1|R0|W0.05|D0") == [
        (0.0, RESET),
        (0.1, BOTH),
        (0.1, STRAP),
        (pytest.approx(0.15), IDLE),
    ]


def test_both_lines_at_once_are_one_step() -> None:
    assert wire("U0,1|W0.1|U1,0|W0.05|U0,0") == [
        (0.0, RESET),
        (0.1, STRAP),
        (pytest.approx(0.15), IDLE),
    ]


def test_lines_end_at_rest() -> None:
    assert wire("U0,1|W0.1", BOTH, BOTH) == [(0.0, RESET), (0.1, BOTH)]


def test_a_baud_rate_is_undone_at_the_end() -> None:
    assert parse_sequence("B1200|W0.2").timed(IDLE, IDLE) == [
        Timed(0.0, Baudrate(1200)),
        Timed(0.2, Baudrate(None)),
    ]


def test_what_changes_nothing_is_left_out() -> None:
    assert wire("U0,0|D0|R0|W1|R1|R1") == [(1.0, Lines(dtr=False, rts=True)), (1.0, IDLE)]


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("d0 | r1 ||W.5|", "D0|R1|W.5"),
        ("U1, 0", "U1,0"),
        ("D1|W1.", "D1|W1."),
    ],
)
def test_it_is_read_as_leniently_as_esptool_does(text: str, means: str) -> None:
    assert str(parse_sequence(text)) == means


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty reset sequence: expected steps such as D0|R1|W0.1"),
        (" | |", "empty reset sequence: expected steps such as D0|R1|W0.1"),
        ("W1", "reset sequence that only waits: expected a step other than W"),
        ("D2", "invalid step 'D2': expected D0, D1, R0, R1, U1,0, W0.1 or B1200"),
        ("D1|X1", "invalid step 'X1': expected D0, D1, R0, R1, U1,0, W0.1 or B1200"),
        ("U1", "invalid step 'U1': expected D0, D1, R0, R1, U1,0, W0.1 or B1200"),
        ("D1|W-1", "invalid step 'W-1': expected D0, D1, R0, R1, U1,0, W0.1 or B1200"),
        ("D1|WNAN", "invalid step 'WNAN': expected D0, D1, R0, R1, U1,0, W0.1 or B1200"),
        ("D1|B0", "invalid step 'B0': expected D0, D1, R0, R1, U1,0, W0.1 or B1200"),
        (
            "D" + "1" * 50,
            f"invalid step 'D{'1' * 19}...': expected D0, D1, R0, R1, U1,0, W0.1 or B1200",
        ),
        ("D1|W5|W5.1", f"reset sequence waits 10.1 s: expected at most {MAX_PAUSES_S:g}"),
        (
            "D1|" * (MAX_STEPS + 1),
            f"reset sequence of {MAX_STEPS + 1} steps: expected at most {MAX_STEPS}",
        ),
    ],
)
def test_what_is_wrong_is_told_in_one_line(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as told:
        parse_sequence(text)
    assert str(told.value) == reason


STEPS = st.sampled_from(["D0", "D1", "R0", "R1", "U0,0", "U1,0", "U0,1", "U1,1", "W0.1", "W.05"])


@given(st.lists(STEPS, min_size=1, max_size=20))
def test_esptool_reads_the_same_in_it(steps: list[str]) -> None:
    text = "|".join([*steps, "D1"])
    ours = [what for _, what in wire(text)]
    lines, theirs = IDLE, []
    for step in [*parse_custom_reset_sequence(text), {"type": "dtr_rts", "dtr": 0, "rts": 0}]:
        dtr = step.get("dtr", step["state"] if step["type"] == "dtr" else lines.dtr)
        rts = step.get("rts", step["state"] if step["type"] == "rts" else lines.rts)
        after = Lines(dtr=bool(dtr), rts=bool(rts))
        theirs += [after] if after != lines else []
        lines = after
    assert ours == theirs


@given(st.text(max_size=40))
def test_any_text_is_a_sequence_or_a_value_error(text: str) -> None:
    try:
        sequence = parse_sequence(text)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017 - the other way is fine too
    else:
        assert parse_sequence(str(sequence)) == sequence


@pytest.mark.parametrize("name", NAMED)
def test_a_named_sequence_is_short_and_ends_where_it_began(name: str) -> None:
    sequence = NAMED[name]
    assert sequence.duration_s <= 2.0
    for rest in (IDLE, BOTH):
        plan = sequence.timed(rest, rest)
        assert [step for step in plan if isinstance(step.what, Lines)][-1].what == rest
        assert [step.after_s for step in plan] == sorted(step.after_s for step in plan)


def test_the_tight_classic_differs_from_the_other_only_where_one_line_moves_before_the_other() -> (
    None
):
    tight = wire(str(reset_sequence.CLASSIC_TIGHT))
    loose = wire(str(reset_sequence.CLASSIC))
    assert [step for step in loose if step != (0.1, BOTH)] == tight
