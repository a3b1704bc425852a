"""Problems of a configuration file as the operator reads them, with hints for common mistakes.

Hints are keys that unknown words may stand for, the likely causes of YAML syntax errors (PyYAML
names the token that it expected, often a line below the mistake), and configuration files of other
programs.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import yaml

from gateway.errors import ConfigError, ConfigProblem

#: The rest of the file is not checked after as many, which a hostile file can have 100,000 of.
MAX_PROBLEMS: Final = 100

#: Longest quotation of the file in a message: names in /dev/serial/by-path have up to 100.
_MAX_CHARS: Final = 200

#: Longest explanation by others (PyYAML, the simulator), which may quote the file.
_MAX_REASON_CHARS: Final = 200

#: Longest word that is compared with keys: difflib takes quadratic time.
_MAX_WORD_CHARS: Final = 60


class Problems:
    """The problems and warnings of one file, collected."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.found: list[ConfigProblem] = []
        self.warnings: list[ConfigProblem] = []

    def add(self, line: int, key: str, problem: str, expected: str = "") -> None:
        """Add a problem (arguments as ConfigProblem's).

        Raises ConfigError after MAX_PROBLEMS.
        """
        self.found.append(ConfigProblem(self.file, line, key, problem, expected))
        if len(self.found) >= MAX_PROBLEMS:
            problem = f"{MAX_PROBLEMS} problems, the rest of the file was not checked"
            raise self.stop(0, problem)

    def raise_if_any(self) -> None:
        """Raise ConfigError with all problems in the order of their lines, if there are any."""
        if self.found:
            raise ConfigError(_by_line(self.found))

    def stop(self, line: int, problem: str, expected: str = "") -> ConfigError:
        """Return the error to raise for a problem after which nothing more can be read."""
        # An alias or tag further up may have caused the syntax error: it is reported too.
        stopper = ConfigProblem(self.file, line, "", problem, expected)
        return ConfigError([*_by_line(self.found), stopper])


def _by_line(problems: Iterable[ConfigProblem]) -> list[ConfigProblem]:
    return sorted(problems, key=lambda problem: problem.line)


@dataclass(frozen=True, slots=True)
class Section:
    """A mapping of the file: its valid values, and the lines of all keys that it gives.

    `path` is its own path of keys, empty for the file; `line` is where it begins.
    """

    path: str
    line: int
    values: dict[str, Any]
    lines: dict[str, int]
    problems: Problems

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, `default` if it is not given or not valid."""
        return self.values.get(key, default)

    def reject(self, key: str, problem: str, expected: str) -> None:
        """Add a problem in the line of `key`, or of the section if it does not give the key."""
        self.problems.add(self.lines.get(key, self.line), self.path, problem, expected)

    def warn(self, key: str, problem: str, expected: str) -> None:
        """Add a warning in the line of `key`, unless the section does not give the key."""
        if (line := self.lines.get(key)) is not None:
            warning = ConfigProblem(
                self.problems.file, line, self.path, problem, expected, is_warning=True
            )
            self.problems.warnings.append(warning)

    def over(self, defaults: dict[str, Any]) -> Section:
        """The section with default values for the keys that it does not give."""
        kept = {name: value for name, value in defaults.items() if name not in self.lines}
        return Section(self.path, self.line, kept | self.values, self.lines, self.problems)


def clipped(text: str, max_chars: int = _MAX_CHARS) -> str:
    """Text of the file for a message: one line, bounded, without control characters."""
    if len(text) > max_chars:
        text = text[: max_chars - 3] + "..."
    return text if text.isprintable() else repr(text)[1:-1]


def quoted(text: str) -> str:
    """Text of the file for a message, in quotes."""
    return f"'{clipped(text)}'"


def reason_of(error: Exception) -> str:
    """The text of an error for a message, bounded."""
    return clipped(str(error), _MAX_REASON_CHARS)


def _by_word(rows: dict[str, str]) -> dict[str, tuple[str, ...]]:
    return {
        word: tuple(keys.split(" | ")) for keys, words in rows.items() for word in words.split()
    }


#: Words of pyserial, ser2net, labgrid, conserver, ESPHome and other programs, and likely guesses
#: that are spelled too differently for difflib, by the keys that they may stand for. The first key
#: counts that is known at that place (`sharing: takeover` stands for the key `sharing`).
_SYNONYMS: Final = _by_word(
    {
        "device": "path tty serial_port serialport connector board by_id by_path match",
        "device: {serial: ...}": "serial",
        "serial | device: {serial: ...}": "serial_number",
        "device: {usb: ...}": "usb",
        "usb | device: {usb: ...}": "usb_id vid_pid vid",
        "device: {location: ...}": "location",
        "location | device: {location: ...}": "socket",
        "interfaces | device: {interface: ...}": "interface",
        "device: sim://esp32": "simulate",
        "tcp | listen | ports": "port",
        "tcp | listen": "tcp_port tcpport listen_port listenport",
        "tcp": "net_port accepter",
        "host | tcp": "listen",
        "host | listen": "bind address addr ip listen_address",
        "listen": "host",
        "host | host_names": "hostname",
        "connect": "remote server dial",
        "baudrate": "speed bps",
        "bytesize": "databits data_bits bits",
        "flow_control": "flow handshake",
        "flow_control: rtscts": "rtscts",
        "flow_control: xonxoff": "xonxoff",
        "sharing: takeover": "kickolduser kick_old_user takeover",
        "sharing: preempt": "preempt",
        "sharing: shared": "shared multi",
        "sharing: exclusive": "exclusive",
        "max_sessions": "maxconnections max_clients",
        "allow": "acl access whitelist",
        "tls": "ssl",
        "tls: {cert: ...}": "cert",
        "cert | tls: {cert: ...}": "certificate",
        "key | tls: {key: ...}": "private_key",
        "tls: {key: ...}": "key",
        "ca | client_ca": "cafile",
        "token_file": "password",
        "idle_timeout_s": "inactivity_timeout",
        "protocol": "mode type",
        "protocol: rfc2217": "telnet rfc2217",
        "protocol: raw": "raw",
        "on_connect: reset": "reset_on_connect",
        "log_file": "log trace trace_both trace_read tr",
        "record_kib": "history",
        "client_buffer_kib": "buffer",
        "name": "id alias label",
        "ports": "devices boards serial_ports consoles connection",
        "defaults": "global",
        "http": "web api rest",
        "mdns": "bonjour avahi zeroconf",
    }
)


def meant_key(word: str, value: yaml.Node, keys: Iterable[str]) -> str:
    """Return the key that an unknown word with this value may stand for, empty if none is near.

    As the operator would write it: `tcp`, or with its value, `sharing: takeover`.
    """
    normal = word[:_MAX_WORD_CHARS].lower().replace("-", "_").replace(" ", "_")
    if word.startswith("-") and word[1:] in keys:
        return f"- {word[1:]}"
    if normal == "port" and "device" in keys and str(value.value)[:1] in ("/", "s"):
        return "device"
    for meant in _SYNONYMS.get(normal, ()):
        if meant.partition(":")[0] in keys:
            return meant
    return _nearest(normal, keys)


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """`did you mean '...'?` with the nearest of `words`; empty if none is near."""
    near = _nearest(word, words)
    return f"did you mean '{near}'?" if near else ""


def _nearest(word: str, words: Iterable[str]) -> str:
    near = difflib.get_close_matches(word[:_MAX_WORD_CHARS].lower(), list(words), n=1)
    return near[0] if near else ""


#: Lines of other programs' files that no file of the gateway has.
_OTHER_PROGRAMS: Final = {
    "ser2net": r"(?m)^(connection|define|default|rotator): +&|^ +accepter: ",
    "ser2net 3": r"(?m)^([\w.:]+,)?\d+:(raw|rawlp|telnet|off):\d+:/dev/\S+",
    "labgrid": r"(?m)^targets:|^ +(- +)?\w*(SerialPort|SerialDriver|RemotePlace):",
    "conserver": r"(?m)^ *(console|default|config|access|break) +[\w*.:/-]+ *\{",
}


def other_program(text: str) -> str:
    """The program whose configuration a text is, empty if none is recognised."""
    if re.search(r"(?m)^ports:", text):
        return ""
    return next((name for name, has in _OTHER_PROGRAMS.items() if re.search(has, text)), "")


#: Line, problem, remedy (empty where the problem has it).
_Cause = tuple[int, str, str]

_KEY: Final = re.compile(r"(?P<indent> *)(?P<dash>- +)?(?P<key>[\w.-]+):(?= |$)")
_KEY_WITHOUT_SPACE: Final = re.compile(r" *(?:- +)?(?P<key>[\w.-]+):(?P<value>[^\s:/].*)")
_ASSIGNMENT: Final = re.compile(r" *(?:- +)?(?P<key>[\w.-]+) *= *.*")
_VALUE: Final = re.compile(r" *(?:- +)?(?P<key>[\w.-]+): +(?P<value>\S.*)")


def likely_cause(text: str, error: yaml.MarkedYAMLError) -> _Cause:  # noqa: C901 - flat
    """Return line, cause and remedy of the most likely mistake behind a syntax error."""
    lines = ["", *text.splitlines(), ""]
    mark = error.problem_mark or error.context_mark
    line, column = (0, 0) if mark is None else (mark.line + 1, mark.column)
    begun = line if error.context_mark is None else error.context_mark.line + 1
    problem, context = error.problem or "", error.context or ""
    found: _Cause | None = None
    if "found another document" in problem:
        found = line, "second document (---)", "one document"
    elif r"'\t'" in problem:
        found = line, "tab in the indentation", "spaces"
    elif "quoted scalar" in context:
        found = begun, "quote without its end", "a closing quote"
    elif match := re.search("parsing a flow (sequence|mapping)", context):
        bracket, closing = "[]" if match[1] == "sequence" else "{}"
        found = begun, f"'{bracket}' without its end", f"'{closing}'"
    elif re.search("(flow|block) node|alias", context) or "cannot start any token" in problem:
        found = _special_character(lines, line)
    elif "could not find expected ':'" in problem:
        found = _no_colon(lines, begun)
    elif "mapping values are not allowed" in problem:
        found = _misplaced_colon(lines, line, column)
    elif "expected <block end>" in problem:
        found = _misplaced_line(lines, line, column, is_scalar="scalar" in problem)
    elif "expected '<document start>'" in problem:
        found = _broken_beginning(lines)
    if context:
        problem = f"{context}{f' that begins in line {begun}' if begun != line else ''}: {problem}"
    return found or (line, f"invalid YAML ({clipped(problem, _MAX_REASON_CHARS)})", "")


def _broken_beginning(lines: list[str]) -> _Cause | None:
    first = next((n for n, line in enumerate(lines) if line.strip(" ")[:1] not in ("", "#")), 0)
    if re.match(r"\[[^\]]*\]\s*$", lines[first]):
        return first, "section of an ini file", "YAML, as in 'ports:'"
    if lines[first].startswith(" "):
        return first, "spaces before the first key of the file", "no indentation"
    return None


def _special_character(lines: list[str], number: int) -> _Cause:
    match = _VALUE.match(lines[number])
    if match is None or match["value"][0] == "{":
        return number, "value that begins with a special character", "it in double quotes"
    value = match["value"].rstrip()
    remedy = f'it in double quotes ("{clipped(value)}")'
    if value.startswith("[") and value.endswith("]"):
        remedy = "each item with a colon in double quotes"
    return number, f"value of {quoted(match['key'])} begins with {quoted(value[0])}", remedy


def _no_colon(lines: list[str], number: int) -> _Cause:
    if match := _KEY_WITHOUT_SPACE.match(lines[number]):
        return _missing_space(number, match)
    if match := _ASSIGNMENT.match(lines[number]):
        return number, "'=' in the place of ':'", quoted(f"{match['key']}: ...")
    return number, "line without a key", "'key: value'"


def _misplaced_colon(lines: list[str], number: int, column: int) -> _Cause | None:
    above = number - 1
    while above and lines[above].strip()[:1] in ("", "#"):
        above -= 1
    # PyYAML takes such a line for the first of a text of several lines.
    if re.match(r" *-\w", lines[above]):
        return above, "no space after '-'", "'- ' before the first key of a port"
    if match := _KEY_WITHOUT_SPACE.match(lines[above]):
        return _missing_space(above, match)
    match, before = _KEY.match(lines[number]), _KEY.match(lines[above])
    if match is not None and column > match.end("key"):
        problem = f"value of {quoted(match['key'])} with a colon"
        value = lines[number][match.end() :].strip()
        if re.match(r"\S+ +[\w.-]+: ", value):
            problem = f"another key after the value of {quoted(match['key'])}"
            return number, problem, "each key in a line of its own"
        return number, problem, f'it in double quotes ("{clipped(value)}")'
    if match is not None and before is not None and match.start("key") > before.start("key"):
        return _wrong_indent(number, match.start("key"), above, before.start("key"))
    return None


def _misplaced_line(
    lines: list[str], number: int, column: int, *, is_scalar: bool
) -> _Cause | None:
    line, above = lines[number], number - 1
    if is_scalar and line[:column].rstrip().endswith(("'", '"')):
        return number, "text after a closing quote", "the whole value in double quotes"
    while above and not re.match(" *- ", lines[above]):
        above -= 1
    dash, here = _KEY.match(lines[above]), _KEY.match(line)
    if dash is None or dash["dash"] is None:
        return None
    dash_column, key_column = len(dash["indent"]), dash.start("key")
    if re.match(" *- ", line):
        is_wrong = column != dash_column
        return _wrong_indent(number, column, above, dash_column) if is_wrong else None
    if here is None or is_scalar:
        return None
    if column <= dash_column and here["key"] == dash["key"]:
        problem = f"no '-' before {quoted(here['key'])}"
        return number, problem, "'- ' before the first key of each port"
    if column > 0 and column != key_column:
        return _wrong_indent(number, column, above, key_column)
    return None


def _missing_space(number: int, match: re.Match[str]) -> _Cause:
    key = match["key"]
    return number, f"no space after {quoted(key + ':')}", quoted(f"{key}: {match['value']}")


def _wrong_indent(number: int, column: int, other_number: int, other_column: int) -> _Cause:
    problem = f"indentation of {column} space{'' if column == 1 else 's'}"
    return number, problem, f"{other_column} as in line {other_number}"
