"""What docs/ and the Makefile name exists: modules, files, links, tests and log events."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gateway"
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), *sorted(ROOT.glob("*.md")), ROOT / "tests" / "README.md"]
#: Says what once was.
NOT_CHANGELOG = [path for path in PAGES if path.name != "CHANGELOG.md"]

#: A file or folder of the repository, perhaps as seen from gateway/ (`session/requests.py`) or
#: tests/, and perhaps with the name of a test.
PATH = re.compile(
    r"`((?:gateway|tests|docs|config|systemd|packaging|\.ci)/[\w./-]+\w/?|\w+/\w+\.py)(?:::(\w+))?`"
)
LINK = re.compile(r"\]\(([^()\s]*)\)")

#: Calls of the kernel and keys of esptool.
NAMES_OF_OTHERS = {"clock_gettime", "sync_timeout"}

#: Functions that log an event, whose name is the first or second argument.
LOGGING = {"info", "warning", "error", "exception", "log", "_log", "Log", "_report"}
EVENT = re.compile(r"[a-z]+(_[a-z]+)+")


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def section(page: Path, title: str) -> str:
    """The text of a page below a heading, up to the next one of its level."""
    text = page.read_text()
    begin = text.index(f"\n## {title}\n")
    return text[begin : (text + "\n## ").index("\n## ", begin + 1)]


def rows(text: str) -> list[list[str]]:
    """The cells of all table rows, heads excepted."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def without_code_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", without_code_blocks(page.read_text()), re.MULTILINE)
    words = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return {each.replace(" ", "-") for each in words}


def documented_modules() -> Iterator[Path]:
    """The modules of the table of packages and modules; a bold folder begins a package."""
    package = ""
    for cells in rows(section(DOCS / "architecture.md", "Packages and modules"))[1:]:
        names = cells[0]
        if found := re.match(r"\*\*`(\w+/)`\*\*", names):
            package = found[1]
            names = cells[1]
        for name in re.findall(r"`(\w+\.py)`", names):
            inside = PACKAGE / package / name
            yield inside if inside.exists() else PACKAGE / name


def test_the_table_of_modules_is_whole() -> None:
    documented = list(documented_modules())
    assert len(documented) == len(set(documented))
    # The simulator is a program of its own; the gateway imports the two that are documented.
    missing = {
        path
        for path in PACKAGE.rglob("*.py")
        if path.name not in {"__init__.py", "__main__.py"} and path.parent.name != "simulator"
    }
    assert {str(path) for path in documented if not path.exists()} == set()
    assert missing - set(documented) == set()


@pytest.mark.parametrize("page", NOT_CHANGELOG, ids=page_id)
def test_files_and_tests_that_a_page_names_exist(page: Path) -> None:
    named = []
    for name, test in PATH.findall(page.read_text()):
        places = [folder / name for folder in (ROOT, PACKAGE, ROOT / "tests")]
        named.append((next((each for each in places if each.exists()), places[0]), test))
    assert [str(path) for path, _ in named if not path.exists()] == []
    assert [test for path, test in named if test and f"def {test}(" not in path.read_text()] == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    dead = []
    for link in LINK.findall(without_code_blocks(page.read_text())):
        name, _, anchor = link.partition("#")
        if re.match(r"\w+:", link):
            continue
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert dead == []


def test_tests_that_the_makefile_names_exist() -> None:
    named = re.findall(r"\btests/[\w/.]+\w", (ROOT / "Makefile").read_text())
    assert "tests/scenarios" in named
    assert [path for path in named if not (ROOT / path).exists()] == []


@cache
def names_in_the_package() -> set[str]:
    sources = [path for path in PACKAGE.rglob("*") if path.suffix in {".py", ".yaml"}]
    return {name for path in sources for name in re.findall(r"[a-z]\w+", path.read_text())}


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=page_id)
def test_keys_events_and_fields_that_a_page_names_exist(page: Path) -> None:
    named = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", page.read_text()))
    ours = {name for name in named if not name.startswith(("esp_gateway_", "process_"))}
    assert ours - names_in_the_package() - NAMES_OF_OTHERS == set()


def logged_events() -> set[str]:
    """The names of all log events but those of the level debug."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            texts = [str(each.value) for each in node.args[:2] if isinstance(each, ast.Constant)]
            if name in LOGGING and "debug" not in texts:
                found |= {each for each in texts if EVENT.fullmatch(each)}
    return found


def test_every_log_event_is_documented_and_no_other() -> None:
    table = rows(section(DOCS / "operations.md", "Log"))[1:]
    documented = {name for cells in table for name in re.findall(r"`(\w+)`", cells[0])}
    events = logged_events()
    assert "client_disconnected" in events
    assert "board_reset" in events
    assert documented - events == set()
    assert events - documented == set()
