"""gateway:// URLs: address of the server, TLS, options."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

FORM = "gateway://HOST:PORT[?OPTION[&OPTION...]]"

#: As long as pyserial's own client waits for each answer.
DEFAULT_TIMEOUT_S = 3.0

_LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True)
class Address:
    """One server's port.

    `timeout_s` limits connecting and each answer. With `tls` the server needs a certificate of `ca`
    (a PEM file; "" for those that the system trusts), and is shown `cert` with its `key` if given.
    `checks_control` says whether answers to SET-CONTROL are awaited and checked, `polls_modem`
    whether the modem state is requested at each read of CTS and its like.
    """

    host: str
    port: int
    timeout_s: float = DEFAULT_TIMEOUT_S
    tls: bool = False
    ca: str = ""
    cert: str = ""
    key: str = ""
    checks_control: bool = True
    polls_modem: bool = False
    log_level: int | None = None


def parse(url: str) -> Address:
    """Read a URL; raises ValueError with the accepted form.

    It also has the options of pyserial's rfc2217://, so that changing one word is enough.
    """
    parts = urlsplit(url)
    if parts.scheme.lower() != "gateway":
        raise ValueError(f"invalid URL {url!r}: expected {FORM}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        raise ValueError(f"invalid URL {url!r}: expected {FORM} with a port of 1 to 65535")
    options = parse_qs(parts.query, keep_blank_values=True)
    return _with_options(host, port, {name: values[-1] for name, values in options.items()})


def _with_options(host: str, port: int, options: dict[str, str]) -> Address:
    timeout_s, log_level = DEFAULT_TIMEOUT_S, None
    files = {"ca": "", "cert": "", "key": ""}
    flags = {"tls": False, "ign_set_control": False, "poll_modem": False}
    for name, value in options.items():
        if name in files:
            if not value:
                raise ValueError(f"invalid {name} '': expected the name of a PEM file")
            files[name] = value
        elif name in flags:
            flags[name] = True
        elif name == "timeout":
            timeout_s = _seconds(value)
        elif name == "logging":
            if value not in _LOG_LEVELS:
                raise ValueError(f"invalid logging {value!r}: expected {', '.join(_LOG_LEVELS)}")
            log_level = logging.getLevelName(value.upper())
        else:
            known = ", ".join((*files, *flags, "timeout", "logging"))
            raise ValueError(f"unknown option {name!r}: expected {known}")
    if files["key"] and not files["cert"]:
        raise ValueError("key without cert: expected cert, too")
    return Address(
        host,
        port,
        timeout_s,
        tls=flags["tls"] or any(files.values()),
        checks_control=not flags["ign_set_control"],
        polls_modem=flags["poll_modem"],
        log_level=log_level,
        **files,
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"invalid timeout {text!r}: expected a number of seconds above 0")
    return seconds
