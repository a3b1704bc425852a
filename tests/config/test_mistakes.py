"""What the operator reads for each mistake: mistakes.txt has files and their messages.

`python -m tests.config.test_mistakes` writes the messages as they are now; look at the difference.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.config.reader import parse_config
from gateway.errors import ConfigError

GOLDEN = Path(__file__).with_name("mistakes.txt")
_TITLE, _MESSAGES = "=== ", "=>\n"


def read_golden() -> dict[str, tuple[str, str]]:
    """File and messages of each case by its title, in their order."""
    cases = {}
    for case in re.split(f"(?m)^{_TITLE}", GOLDEN.read_text())[1:]:
        title, _, content = case.partition("\n")
        text, _, messages = content.partition(_MESSAGES)
        assert title not in cases, f"two cases are called {title}"
        cases[title] = text, messages
    return cases


def messages_for(text: str) -> str:
    """What `check` says of a file, warnings included, a line each."""
    try:
        lines = [str(warning) for warning in parse_config(text, "f.yaml").warnings]
    except ConfigError as error:
        lines = str(error).splitlines()
    return "".join(f"{line}\n" for line in lines)


CASES = read_golden()


@pytest.mark.parametrize("title", CASES)
def test_a_mistake_has_its_message_a_short_line_that_a_terminal_can_show(title: str) -> None:
    text, messages = CASES[title]
    assert messages_for(text) == messages
    for line in messages.splitlines():
        assert re.match(r"f\.yaml(:\d+)?: ", line)
        assert line.isprintable()
        assert len(line) <= 250 or "expected one of" in line


def _write_golden() -> None:
    head = GOLDEN.read_text().partition(_TITLE)[0]
    cases = (
        f"{_TITLE}{title}\n{text}{_MESSAGES}{messages_for(text)}"
        for title, (text, _) in CASES.items()
    )
    GOLDEN.write_text(head + "".join(cases))


if __name__ == "__main__":
    _write_golden()
