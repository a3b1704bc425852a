"""The files of the page: what is in them and what must not be."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from gateway.web.page import STATIC

VENDOR = STATIC / "vendor"
OURS = sorted(path for path in STATIC.rglob("*") if path.is_file() and VENDOR not in path.parents)
MODULES = [path for path in OURS if path.suffix == ".js"]
MAX_LINES = 400

#: Ways to have text read as markup or as a program: what boards say and are called must not be.
READS_MARKUP = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|srcdoc"
    r"|\beval\(|new Function|setTimeout\(['\"]|createContextualFragment|setHTML"
)


def test_there_is_a_page() -> None:
    assert {"index.html", "page.css", "app.js", "console.js"} <= {path.name for path in OURS}


def test_files_of_others_are_those_that_their_table_names() -> None:
    table = (VENDOR / "README.md").read_text()
    wanted = dict(re.findall(r"^\| (\w+/\S+) \| \S+ \| ([0-9a-f]{64}) \|$", table, re.MULTILINE))
    assert "xterm/xterm.js" in wanted
    found = {
        str(path.relative_to(VENDOR)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in VENDOR.rglob("*")
        if path.is_file() and path.name != "README.md"
    }
    assert found == wanted


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_a_module_puts_no_markup_onto_the_page(path: Path) -> None:
    text = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
    assert not READS_MARKUP.findall(text)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_a_module_says_what_it_is_for_and_can_be_read_in_one_sitting(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("/**")
    assert len(text.splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_a_module_imports_files_that_are_there(path: Path) -> None:
    for name in re.findall(
        r"^import .*?from '(.+?)';$", path.read_text(), re.MULTILINE | re.DOTALL
    ):
        assert (path.parent / name).is_file(), name


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_a_file_names_nothing_on_other_machines(path: Path) -> None:
    addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s'\"]*", path.read_text()))
    assert addresses <= {"http://www.w3.org/2000/svg"}  # a name, not an address


def test_the_page_has_no_scripts_and_styles_in_its_text() -> None:
    text = (STATIC / "index.html").read_text()
    assert not re.findall(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", text)
