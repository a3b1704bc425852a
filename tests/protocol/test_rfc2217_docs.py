"""docs/rfc2217.md is whole and true: commands, values, bits, options, tests and numbers.

Of docs/security.md: the tests of its limits exist.
"""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

from gateway.protocol.rfc2217 import Control, Linestate, Modemstate, PurgeBuffers

TESTS = Path(__file__).parents[1]
DOCS = (TESTS.parent / "docs" / "rfc2217.md").read_text()
SECURITY = (TESTS.parent / "docs" / "security.md").read_text()

#: Codes of RFC 2217 section 2, and what each may be followed by.
OCTETS = set(range(256))
COMMANDS: dict[int, tuple[str, set[object]]] = {
    0: ("SIGNATURE", {"empty", "text"}),
    1: ("SET-BAUDRATE", {0, "1-4294967295"}),
    2: ("SET-DATASIZE", {*OCTETS}),
    3: ("SET-PARITY", {*OCTETS}),
    4: ("SET-STOPSIZE", {*OCTETS}),
    5: ("SET-CONTROL", {*OCTETS}),
    6: ("NOTIFY-LINESTATE", {*OCTETS}),
    7: ("NOTIFY-MODEMSTATE", {*OCTETS}),
    8: ("FLOWCONTROL-SUSPEND", {"none"}),
    9: ("FLOWCONTROL-RESUME", {"none"}),
    10: ("SET-LINESTATE-MASK", {*OCTETS}),
    11: ("SET-MODEMSTATE-MASK", {*OCTETS}),
    12: ("PURGE-DATA", {*OCTETS}),
}


def rows(title: str, docs: str = DOCS) -> list[list[str]]:
    """The cells of the first table behind a title."""
    section = docs.partition(f"\n{title}\n")[2]
    table = re.search(r"^\|---.*?\n((?:\|.*\n)+)", section, re.MULTILINE)
    assert table is not None, title
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table[1].splitlines()]


def values(text: str) -> set[object]:
    """`0, 4-255` as numbers; a word, or a range that is none of octets, as it is."""
    found: set[object] = set()
    for part in text.split(", "):
        first, _, last = part.partition("-")
        if not first.isdigit() or int(last or first) > 255:
            found.add(part)
        else:
            found.update(range(int(first), int(last or first) + 1))
    return found


def named_tests() -> list[tuple[str, str]]:
    return sorted(set(re.findall(r"`(test_\w+\.py)::(test_\w+)`", DOCS)))


def test_every_command_has_a_row_for_each_of_its_values_and_only_one() -> None:
    told: dict[int, list[object]] = {code: [] for code in COMMANDS}
    for row in rows("## Commands")[:-1]:
        number, _, name = row[0].partition(" ")
        assert COMMANDS[int(number)][0] == name
        told[int(number)] += values(row[1])
    for code, (_, wanted) in COMMANDS.items():
        assert set(told[code]) == wanted, code
        assert len(told[code]) == len(wanted), code


def test_the_last_row_tells_of_all_other_commands() -> None:
    assert values(rows("## Commands")[-1][0]) == OCTETS - set(COMMANDS)


@pytest.mark.parametrize(
    ("code", "defined"),
    [(2, {0, 5, 6, 7, 8}), (3, range(6)), (4, range(4)), (5, Control), (12, PurgeBuffers)],
)
def test_values_that_mean_something_do_not_stand_with_those_of_the_future(
    code: int, defined: set[int]
) -> None:
    for row in rows("## Commands")[:-1]:
        if row[0].startswith(f"{code} "):
            of_row = values(row[1])
            assert of_row <= set(defined) or not of_row & set(defined), row


def test_every_row_says_where_it_is_written_and_what_shows_it() -> None:
    for row in rows("## Commands"):
        assert row[2] in {"2", "3", "4", "5"}
        assert row[3]
        assert re.match(r"`test_\w+\.py::test_\w+`", row[4])


@pytest.mark.parametrize(
    ("title", "bits"), [("### Line state", Linestate), ("### Modem state", Modemstate)]
)
def test_every_bit_has_a_row(title: str, bits: type[Linestate] | type[Modemstate]) -> None:
    assert [int(row[0]) for row in rows(title)] == sorted(int(bit) for bit in bits)


def test_every_option_that_is_not_refused_has_a_row() -> None:
    options = [row[0].partition(" ")[0] for row in rows("### Options")]
    assert options == ["0", "1", "3", "6", "44", "all"]


@pytest.mark.parametrize(("file", "name"), named_tests())
def test_each_test_that_is_named_exists(file: str, name: str) -> None:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    defined = {
        node.name
        for path in TESTS.rglob(file)
        for node in ast.parse(path.read_text()).body
        if isinstance(node, functions)
    }
    assert name in defined


def test_tests_are_named_everywhere() -> None:
    assert len(named_tests()) > 40
    assert len(re.findall(r"`test_", DOCS)) == len(re.findall(r"`test_\w+\.py::test_\w+`", DOCS)), (
        "a name that is no test's"
    )


@pytest.mark.parametrize("row", rows("## Bounds"), ids=lambda row: row[2])
def test_each_bound_is_the_number_in_the_code(row: list[str]) -> None:
    module, _, constant = row[2].strip("`").rpartition(".")
    assert getattr(importlib.import_module(module), constant) == float(row[1])


@pytest.mark.parametrize("row", rows("## Limits", SECURITY), ids=lambda row: row[0])
def test_each_limit_is_measured_by_a_test_that_exists(row: list[str]) -> None:
    assert all((TESTS / f"{test}.py").exists() for test in row[2].split(", ")), row[2]
