"""The likely cause of a YAML syntax error, in terms of the line instead of the grammar.

PyYAML names the token that it expected (`<block end>`), often a line below the mistake. Most
mistakes are few: indentation, a dash, a space after a colon, quotes.
"""

from __future__ import annotations

import re
from typing import Final

import yaml

from gateway.config.wording import MAX_REASON_CHARS, clipped, quoted

#: Line, problem, remedy (empty where the problem has it).
Cause = tuple[int, str, str]

_KEY: Final = re.compile(r"(?P<indent> *)(?P<dash>- +)?(?P<key>[\w.-]+):(?= |$)")
_KEY_WITHOUT_SPACE: Final = re.compile(r" *(?:- +)?(?P<key>[\w.-]+):(?P<value>[^\s:/].*)")
_DASH_WITHOUT_SPACE: Final = re.compile(r" *-(?P<rest>\w.*)")
_ASSIGNMENT: Final = re.compile(r" *(?:- +)?(?P<key>[\w.-]+) *= *(?P<value>.*)")
_VALUE: Final = re.compile(r" *(?:- +)?(?P<key>[\w.-]+): +(?P<value>\S.*)")
_INI_SECTION: Final = re.compile(r"\[[^\]]*\]\s*$")
_DASH: Final = re.compile(r"(?P<indent> *)- ")

_BRACKETS: Final = {"sequence": "[", "mapping": "{"}


def likely_cause(text: str, error: yaml.MarkedYAMLError) -> Cause:
    """Return line, cause and remedy of the most likely mistake behind a syntax error."""
    lines = text.splitlines()
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark is not None else 0
    problem, context = error.problem or "", error.context or ""
    begun = error.context_mark.line + 1 if error.context_mark is not None else line
    column = mark.column if mark is not None else 0
    found: Cause | None = None
    if "found another document" in problem:
        found = line, "second document (---)", "one document"
    elif r"'\t'" in problem:
        found = line, "tab in the indentation", "spaces"
    elif "quoted scalar" in context:
        found = begun, "quote without its end", "a closing quote"
    elif match := re.search("parsing a flow (sequence|mapping)", context):
        bracket = _BRACKETS[match[1]]
        found = begun, f"'{bracket}' without its end", f"'{']' if bracket == '[' else '}'}'"
    elif (
        re.search("(flow|block) node", context)
        or "cannot start any token" in problem
        or "alias" in context
    ):
        found = _special_character(lines, line)
    elif "could not find expected ':'" in problem:
        found = _no_colon(lines, begun)
    elif "mapping values are not allowed" in problem:
        found = _misplaced_colon(lines, line, column)
    elif "expected <block end>" in problem:
        found = _misplaced_line(lines, line, column, problem)
    elif "expected '<document start>'" in problem:
        found = _broken_beginning(lines)
    return found or (line, f"invalid YAML ({_complaint(error, begun, line)})", "")


def _special_character(lines: list[str], number: int) -> Cause:
    match = _VALUE.match(_at(lines, number))
    if match is None or match["value"][0] == "{":
        return number, "value that begins with a special character", "it in double quotes"
    problem = f"value of {quoted(match['key'])} begins with {quoted(match['value'][0])}"
    value = match["value"].rstrip()
    if value.startswith("[") and value.endswith("]"):
        return number, problem, "each item with a colon in double quotes"
    return number, problem, f'it in double quotes ("{clipped(value)}")'


def _no_colon(lines: list[str], number: int) -> Cause:
    line = _at(lines, number)
    if match := _KEY_WITHOUT_SPACE.match(line):
        return _missing_space(number, match)
    if match := _ASSIGNMENT.match(line):
        return number, "'=' in the place of ':'", quoted(f"{match['key']}: ...")
    return number, "line without a key", "'key: value'"


def _misplaced_colon(lines: list[str], number: int, column: int) -> Cause | None:
    line, above_number = _at(lines, number), _above(lines, number)
    above = _at(lines, above_number)
    # PyYAML takes such a line for the first of a text of several lines.
    if match := _DASH_WITHOUT_SPACE.match(above):
        return above_number, "no space after '-'", "'- ' before the first key of a port"
    if match := _KEY_WITHOUT_SPACE.match(above):
        return _missing_space(above_number, match)
    match, before = _KEY.match(line), _KEY.match(above)
    if match is None:
        return None
    if column > match.end("key"):
        problem = f"value of {quoted(match['key'])} with a colon"
        value = line[match.end() :].strip()
        if re.match(r"\S+ +[\w.-]+: ", value):
            problem = f"another key behind the value of {quoted(match['key'])}"
            return number, problem, "each key in a line of its own"
        return number, problem, f'it in double quotes ("{clipped(value)}")'
    if before is not None and match.start("key") > before.start("key"):
        return _wrong_indent(number, match.start("key"), above_number, before.start("key"))
    return None


def _misplaced_line(lines: list[str], number: int, column: int, problem: str) -> Cause | None:
    line = _at(lines, number)
    if "scalar" in problem and line[column - 1 : column] in ("'", '"'):
        return number, "text behind a closing quote", "the whole value in double quotes"
    dash_number = number - 1
    while dash_number and not _DASH.match(_at(lines, dash_number)):
        dash_number -= 1
    dash = _KEY.match(_at(lines, dash_number))
    if dash is None or dash["dash"] is None:
        return None
    dash_column, key_column = len(dash["indent"]), dash.start("key")
    if _DASH.match(line):
        if column != dash_column:
            return _wrong_indent(number, column, dash_number, dash_column)
        return None
    here = _KEY.match(line)
    if here is None or "scalar" in problem:
        return None
    if column <= dash_column and here["key"] == dash["key"]:
        problem = f"no '-' before {quoted(here['key'])}"
        return number, problem, "'- ' before the first key of each port"
    if column > 0 and column != key_column:
        return _wrong_indent(number, column, dash_number, key_column)
    return None


def _broken_beginning(lines: list[str]) -> Cause | None:
    number = next((n for n, line in enumerate(lines, 1) if line.strip(" ")[:1] not in ("", "#")), 0)
    first = _at(lines, number)
    if _INI_SECTION.match(first):
        return number, "section of an ini file", "YAML, as in 'ports:'"
    if first.startswith(" "):
        return number, "spaces before the first key of the file", "no indentation"
    return None


def _missing_space(number: int, match: re.Match[str]) -> Cause:
    key = match["key"]
    return number, f"no space after {quoted(key + ':')}", quoted(f"{key}: {match['value']}")


def _wrong_indent(number: int, column: int, other_number: int, other_column: int) -> Cause:
    problem = f"indentation of {column} space{'s' if column > 1 else ''}"
    return number, problem, f"{other_column} as in line {other_number}"


def _at(lines: list[str], number: int) -> str:
    return lines[number - 1] if 1 <= number <= len(lines) else ""


def _above(lines: list[str], number: int) -> int:
    """The line before that is neither empty nor a comment; 0 if there is none."""
    number -= 1
    while number and _at(lines, number).strip()[:1] in ("", "#"):
        number -= 1
    return number


def _complaint(error: yaml.MarkedYAMLError, begun: int, line: int) -> str:
    context = error.context or ""
    if context and begun != line:
        context += f" that begins in line {begun}"
    text = ": ".join(part for part in (context, error.problem or "") if part)
    return clipped(text, MAX_REASON_CHARS)
