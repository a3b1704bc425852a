"""What a client may ask to be flashed, and how what it may not is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
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
    PlanError,
    checked,
    plan_from_json,
)

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
        ((), "there is no image"),
        ((replace(APP, size=0),), "app.bin is empty"),
        ((replace(APP, offset=-4096),), "outside of any flash"),
        ((replace(APP, offset=2**32 - 4),), "outside of any flash"),
        ((replace(BOOTLOADER, size=0xF001), APP), "bootloader.bin (0x1000 to 0x10000) overlaps"),
        ((APP, APP), "app.bin (0x10000 to 0x593df) overlaps app.bin at 0x10000"),
        ((replace(APP, size=MAX_BYTES + 1),), f"at most {MAX_BYTES} are accepted"),
        (
            tuple(replace(APP, offset=at, size=1) for at in range(MAX_IMAGES + 1)),
            f"at most {MAX_IMAGES} are accepted",
        ),
    ],
)
def test_images_that_can_t_be_written_are_refused(
    images: tuple[FlashImage, ...], reason: str
) -> None:
    with pytest.raises(PlanError) as refused:
        checked(FlashPlan(images))
    assert reason in str(refused.value)


def test_images_may_touch() -> None:
    checked(FlashPlan((replace(BOOTLOADER, size=0xF000), APP)))


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda plan: plan.update(format=2), '"format": 1'),
        (lambda plan: plan.pop("images"), "no list of images"),
        (lambda plan: plan.update(images=[7]), "images[0] has to be a JSON object"),
        (lambda plan: plan["images"][1].update(offset="0x10"), "images[1] needs offset and size"),
        (lambda plan: plan["images"][1].update(size=True), "images[1] needs offset and size"),
        (lambda plan: plan["images"][0].update(sha256="AB"), "images[0] needs sha256"),
        (lambda plan: plan.update(options=[]), "options has to be"),
        (lambda plan: plan["options"].update(port="/dev/sda"), "unknown options: port"),
        (lambda plan: plan["options"].update(chip="--help"), "chip: '--help' is none"),
        (lambda plan: plan["options"].update(flash_mode=7), "flash_mode: '7' is none"),
        (lambda plan: plan["options"].update(after="explode"), "after: 'explode' is none"),
        (lambda plan: plan["options"].update(baudrate=1), "baudrate: '1' is not from"),
        (lambda plan: plan["options"].update(baudrate=True), "baudrate: 'True' is not"),
        (lambda plan: plan["options"].update(erase_all=1), "erase_all has to be true or false"),
        (lambda plan: plan["options"].update(compress=1), "compress has to be true, false or"),
    ],
)
def test_what_is_no_plan_is_refused_with_the_reason(edit: Edit, reason: str) -> None:
    content = json.loads(PLAN.to_json())
    edit(content)
    with pytest.raises(PlanError) as refused:
        plan_from_json(json.dumps(content))
    assert reason in str(refused.value)


@pytest.mark.parametrize("text", ["", "nonsense", "[]", "[" * 60000, '{"format": 1' + "0" * 6000])
def test_what_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(PlanError):
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
    except PlanError as error:
        said = str(error)
    else:
        said = plan.to_json()
    assert "\n" not in said
