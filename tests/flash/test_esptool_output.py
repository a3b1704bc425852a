"""esptool's output as it was recorded of esptool 5.6 and 4.8 on simulated boards, into a pipe."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.flash.esptool_output import ChipFound, EsptoolOutput, Event, Phase, Verified, Writing
from gateway.flash.outcome import Outcome

RECORDED = Path(__file__).parents[1] / "recorded"
VERSIONS = ["5.6", "4.8"]


def read(name: str, n_images: int = 1) -> tuple[EsptoolOutput, list[Event]]:
    output = EsptoolOutput(n_images)
    lines = (RECORDED / f"esptool-{name}.txt").read_text(encoding="utf-8").splitlines()
    return output, [event for line in lines for event in output.read(line)]


@pytest.mark.parametrize("version", VERSIONS)
def test_three_images_that_are_written_and_verified(version: str) -> None:
    output, events = read(f"{version}-written", 3)
    assert events[0] == ChipFound("ESP32-D0WD-V3 (revision v3.1)")
    assert [event.image for event in events if isinstance(event, Verified)] == [0, 1, 2]
    writing = [event for event in events if isinstance(event, Writing)]
    assert [(event.image, event.percent) for event in writing] == sorted(
        (event.image, event.percent) for event in writing
    )
    assert {event.image for event in writing if event.percent == 100} == {0, 1, 2}
    assert len([event for event in writing if event.image == 2]) > 10
    assert output.verified == 3
    assert output.outcome(0) == (Outcome.WRITTEN, "")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("what", "outcome", "phase", "reason"),
    [
        ("nocontact", Outcome.NO_CONTACT, Phase.CONNECTING, "Failed to connect to Espressif dev"),
        ("wrongchip", Outcome.REFUSED, Phase.CONNECTING, "This chip is ESP32"),
        ("vanish", Outcome.INCOMPLETE, Phase.WRITING, ""),
        ("killed", Outcome.INCOMPLETE, Phase.WRITING, ""),
    ],
)
def test_failures_are_told_apart(
    version: str, what: str, outcome: Outcome, phase: Phase, reason: str
) -> None:
    output, _ = read(f"{version}-{what}")
    found, said = output.outcome(2)
    assert (found, output.phase) == (outcome, phase)
    assert said
    assert said.startswith(reason)
    assert "\n" not in said


def test_what_was_read_back_wrong_is_not_verified() -> None:
    output = EsptoolOutput(1)
    for line in (
        "Chip type:          ESP32",
        "Writing at 0x00010000 - 100.0% 16.00kB/16.00kB [0s]",
        "Wrote 16384 bytes at 0x00010000 in 0.4 seconds (518.8 kbit/s).",
        "Verifying written data...",
        "ERROR: A fatal error occurred: MD5 of file does not match data in flash!",
    ):
        output.read(line)
    reason = "MD5 of file does not match data in flash!"
    assert output.outcome(2) == (Outcome.NOT_VERIFIED, reason)


def test_a_failure_behind_the_last_hash_is_one_of_the_reset() -> None:
    output, _ = read("5.6-written", 3)
    output.read("ERROR: A serial exception error occurred: it is gone")
    assert output.outcome(1) == (Outcome.NOT_RESET, "it is gone")


def test_the_reason_of_one_that_says_nothing_is_its_end() -> None:
    output = EsptoolOutput(1)
    assert output.outcome(3) == (Outcome.NO_CONTACT, "esptool has failed with exit code 3")
    assert output.outcome(-9)[1] == "esptool was ended by signal 9"
    output.read("  a last word ")
    assert output.outcome(3)[1] == "a last word"


@given(st.lists(st.text()), st.integers(1, 5))
def test_any_lines_are_read(lines: list[str], n_images: int) -> None:
    output = EsptoolOutput(n_images)
    for line in [*lines, "Wrote 1 bytes", *lines, "Hash of data verified.", "Wrote 1 bytes"] * 3:
        for event in output.read(line):
            if isinstance(event, Writing):
                assert 0 <= event.image < n_images
                assert 0 <= event.percent <= 100
    assert output.verified <= n_images
    assert len(output.outcome(2)[1]) < 400
