"""Plans of clients, and outcomes, on whose names and exit codes scripts of others depend."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.flash.plan import (
    MAX_BYTES,
    MAX_IMAGES,
    FlashImage,
    FlashOptions,
    FlashPlan,
    Outcome,
    WrongInputError,
    checked,
    plan_from_json,
)
from gateway.web.page import interface

HASH = "0" * 64
BOOTLOADER = FlashImage(0x1000, 26000, HASH, "bootloader.bin")
APP = FlashImage(0x10000, 300000, HASH, "app.bin")
PLAN = FlashPlan((BOOTLOADER, APP), FlashOptions(chip="esp32", erase_all=True), "ann@desk")

Edit = Callable[[dict[str, Any]], object]


def test_a_plan_comes_out_of_its_json_as_it_was() -> None:
    assert plan_from_json(PLAN.to_json()) == PLAN
    assert PLAN.total_bytes == 326000


def test_images_are_put_in_the_order_of_their_offsets() -> None:
    assert checked(FlashPlan((APP, BOOTLOADER))).images == (BOOTLOADER, APP)


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        ((), "no images"),
        ((replace(APP, size=0),), "app.bin is empty"),
        ((replace(APP, offset=-4096),), "outside of any flash"),
        ((replace(APP, offset=2**32 - 4),), "outside of any flash"),
        ((replace(BOOTLOADER, size=0xF001), APP), "bootloader.bin (0x1000 to 0x10000) overlaps"),
        ((APP, APP), "app.bin (0x10000 to 0x593df) overlaps app.bin at 0x10000"),
        ((replace(APP, size=MAX_BYTES + 1),), f"expected at most {MAX_BYTES}"),
        (
            tuple(replace(APP, offset=at, size=1) for at in range(MAX_IMAGES + 1)),
            f"expected {MAX_IMAGES}",
        ),
    ],
)
def test_images_that_can_t_be_written_are_refused(
    images: tuple[FlashImage, ...], reason: str
) -> None:
    with pytest.raises(WrongInputError) as refused:
        checked(FlashPlan(images))
    assert reason in str(refused.value)


def test_images_may_touch() -> None:
    checked(FlashPlan((replace(BOOTLOADER, size=0xF000), APP)))


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda plan: plan.update(format=2), '"format": 1'),
        (lambda plan: plan.pop("images"), "expected a list of images"),
        (lambda plan: plan.update(images=[7]), "invalid images[0]: expected a JSON object"),
        (
            lambda plan: plan["images"][1].update(offset="0x10"),
            "invalid images[1]: expected whole numbers",
        ),
        (
            lambda plan: plan["images"][1].update(size=True),
            "invalid images[1]: expected whole numbers",
        ),
        (lambda plan: plan["images"].reverse(), "images in wrong order"),
        (lambda plan: plan["images"][0].update(sha256="AB"), "invalid images[0]: expected sha256"),
        (lambda plan: plan.update(options=[]), "invalid options: expected a JSON object"),
        (lambda plan: plan["options"].update(port="/dev/sda"), "unknown options: port"),
        (lambda plan: plan["options"].update(chip="--help"), "invalid chip '--help'"),
        (lambda plan: plan["options"].update(flash_mode=7), "invalid flash_mode '7'"),
        (lambda plan: plan["options"].update(after="explode"), "invalid after 'explode'"),
        (
            lambda plan: plan["options"].update(baudrate=1),
            "invalid baudrate '1': expected 300 to 10000000",
        ),
        (lambda plan: plan["options"].update(baudrate=True), "invalid baudrate 'True'"),
        (
            lambda plan: plan["options"].update(erase_all=1),
            "invalid erase_all '1': expected true or false",
        ),
        (lambda plan: plan["options"].update(compress=1), "invalid compress"),
    ],
)
def test_what_is_no_plan_is_refused_with_the_reason(edit: Edit, reason: str) -> None:
    content = json.loads(PLAN.to_json())
    edit(content)
    with pytest.raises(WrongInputError) as refused:
        plan_from_json(json.dumps(content))
    assert reason in str(refused.value)


@pytest.mark.parametrize("text", ["", "nonsense", "[]", "[" * 60000, '{"format": 1' + "0" * 6000])
def test_what_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(WrongInputError):
        plan_from_json(text)


def test_names_from_outside_can_t_disturb_a_terminal() -> None:
    content = json.loads(PLAN.to_json())
    content["images"][0]["name"] = "\x1b[2Japp" + 200 * "x"
    content["images"][1]["name"] = 7
    content["label"] = "ann\r\nbob"
    plan = plan_from_json(json.dumps(content))
    assert plan.images[0].name.startswith("?[2Japp")
    assert len(plan.images[0].name) == 100
    assert plan.images[1].name == "0x10000"
    assert plan.label == "ann??bob"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(
    st.fixed_dictionaries(
        {"format": st.just(1)},
        optional={
            "images": st.lists(
                st.dictionaries(st.sampled_from(["offset", "size", "sha256", "name"]), json_values)
            )
            | json_values,
            "options": st.dictionaries(st.sampled_from(["chip", "baudrate", "stub"]), json_values)
            | json_values,
            "label": json_values,
        },
    )
)
def test_any_json_is_a_plan_or_refused(content: dict[str, object]) -> None:
    try:
        plan = plan_from_json(json.dumps(content))
    except WrongInputError as error:
        said = str(error)
    else:
        said = plan.to_json()
    assert "\n" not in said


DOCS = Path(__file__).parents[2] / "docs" / "remote-flashing.md"


def test_exit_codes_are_those_that_were_told() -> None:
    assert {outcome.value: outcome.exit_code for outcome in Outcome} == {
        "written": 0,
        "failed": 1,
        "wrong-input": 2,
        "unreachable": 3,
        "not-allowed": 4,
        "busy": 5,
        "absent": 6,
        "no-contact": 7,
        "refused": 8,
        "incomplete": 9,
        "not-verified": 10,
        "not-reset": 11,
        "not-stored": 12,
        "no-esptool": 13,
    }


def test_the_documentation_has_the_same_codes() -> None:
    rows = re.findall(r"^\| (\d+) \| `([a-z-]+)` \| .", DOCS.read_text(), re.MULTILINE)
    assert {name: int(code) for code, name in rows} == {
        outcome.value: outcome.exit_code for outcome in Outcome
    }


def test_the_interface_is_described_with_the_same_words() -> None:
    described = interface()["components"]["schemas"]["flash_outcome"]["enum"]
    assert described == [outcome.value for outcome in Outcome]
