"""Words of the messages: quoted text of the file, and keys that unknown words may stand for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Final

import yaml

#: Words of pyserial, ser2net, labgrid, conserver, ESPHome and other programs, and likely guesses,
#: in lower case with underscores. Of the hints the first counts whose key is known at that place
#: (`sharing: takeover` stands for the key `sharing`).
_SYNONYMS: Final[dict[str, tuple[str, ...]]] = {
    # the device
    "path": ("device",),
    "tty": ("device",),
    "dev": ("device",),
    "serial_port": ("device",),
    "serialport": ("device",),
    "serial_device": ("device",),
    "connector": ("device",),
    "board": ("device",),
    "by_id": ("device",),
    "by_path": ("device",),
    "serial": ("device: {serial: ...}",),
    "serial_number": ("serial", "device: {serial: ...}"),
    "usb": ("device: {usb: ...}",),
    "usb_id": ("usb", "device: {usb: ...}"),
    "vid_pid": ("usb", "device: {usb: ...}"),
    "vid": ("usb", "device: {usb: ...}"),
    "location": ("device: {location: ...}",),
    "socket": ("location", "device: {location: ...}"),
    "interface": ("interfaces", "device: {interface: ...}"),
    "match": ("device",),
    "simulate": ("device: sim://esp32",),
    # the address
    "port": ("tcp", "listen", "ports"),
    "tcp_port": ("tcp", "listen"),
    "tcpport": ("tcp", "listen"),
    "listen_port": ("tcp", "listen"),
    "listenport": ("tcp", "listen"),
    "net_port": ("tcp",),
    "accepter": ("tcp",),
    "listen": ("host", "tcp"),
    "bind": ("host", "listen"),
    "address": ("host", "listen"),
    "addr": ("host", "listen"),
    "ip": ("host", "listen"),
    "host": ("listen",),
    "hostname": ("host", "host_names"),
    "listen_address": ("host", "listen"),
    "remote": ("connect",),
    "server": ("connect",),
    "connect_to": ("connect",),
    "connect_back": ("connect",),
    "dial": ("connect",),
    # the serial settings
    "speed": ("baudrate",),
    "baud": ("baudrate",),
    "baud_rate": ("baudrate",),
    "bps": ("baudrate",),
    "rate": ("baudrate",),
    "databits": ("bytesize",),
    "data_bits": ("bytesize",),
    "bits": ("bytesize",),
    "byte_size": ("bytesize",),
    "stop_bits": ("stopbits",),
    "stopbit": ("stopbits",),
    "flowcontrol": ("flow_control",),
    "flow": ("flow_control",),
    "handshake": ("flow_control",),
    "rtscts": ("flow_control: rtscts",),
    "xonxoff": ("flow_control: xonxoff",),
    # access
    "kickolduser": ("sharing: takeover",),
    "kick_old_user": ("sharing: takeover",),
    "takeover": ("sharing: takeover",),
    "preempt": ("sharing: preempt",),
    "shared": ("sharing: shared",),
    "exclusive": ("sharing: exclusive",),
    "multi": ("sharing: shared",),
    "max_connections": ("max_sessions",),
    "maxconnections": ("max_sessions",),
    "max_clients": ("max_sessions",),
    "acl": ("allow",),
    "allowed": ("allow",),
    "allow_from": ("allow",),
    "access": ("allow",),
    "whitelist": ("allow",),
    "ssl": ("tls",),
    "cert": ("tls: {cert: ...}",),
    "certificate": ("cert", "tls: {cert: ...}"),
    "private_key": ("key", "tls: {key: ...}"),
    "key": ("tls: {key: ...}",),
    "cafile": ("ca", "client_ca"),
    "token": ("token_file",),
    "password": ("token_file",),
    "timeout": ("idle_timeout_s",),
    "idle_timeout": ("idle_timeout_s",),
    "idletimeout": ("idle_timeout_s",),
    "inactivity_timeout": ("idle_timeout_s",),
    # behaviour and recording
    "mode": ("protocol",),
    "type": ("protocol",),
    "telnet": ("protocol: rfc2217",),
    "rfc2217": ("protocol: rfc2217",),
    "raw": ("protocol: raw",),
    "reset_on_connect": ("on_connect: reset",),
    "hold": ("hold_s",),
    "grace": ("grace_s",),
    "logfile": ("log_file",),
    "log": ("log_file",),
    "trace": ("log_file",),
    "trace_both": ("log_file",),
    "trace_read": ("log_file",),
    "tr": ("log_file",),
    "history": ("record_kib",),
    "buffer": ("client_buffer_kib",),
    "id": ("name",),
    "alias": ("name",),
    "label": ("name",),
    # the sections of the file
    "devices": ("ports",),
    "boards": ("ports",),
    "serial_ports": ("ports",),
    "consoles": ("ports",),
    "connection": ("ports",),
    "default": ("defaults",),
    "global": ("defaults",),
    "web": ("http",),
    "api": ("http",),
    "rest": ("http",),
    "bonjour": ("mdns",),
    "avahi": ("mdns",),
    "zeroconf": ("mdns",),
}

#: Longest piece of the file that a message repeats: names in /dev/serial/by-path have 80 to 100.
_MAX_CHARS: Final = 200

#: Longest word that is compared with keys: difflib takes quadratic time.
_MAX_WORD_CHARS: Final = 60

#: Longest explanation by others (PyYAML, the simulator); they may quote the file.
MAX_REASON_CHARS: Final = 200


def clipped(text: str, max_chars: int = _MAX_CHARS) -> str:
    """Text of the file for a message: one line, bounded, without control characters."""
    if len(text) > max_chars:
        text = text[: max_chars - 3] + "..."
    return text if text.isprintable() else repr(text)[1:-1]


def quoted(text: str) -> str:
    """Text of the file for a message, in quotes."""
    return f"'{clipped(text)}'"


def meant_key(word: str, value: yaml.Node, keys: tuple[str, ...]) -> str:
    """Return the key that an unknown word with this value may stand for.

    As the operator would write it: `tcp`, or with its value, `sharing: takeover`; empty if no key
    is near.
    """
    normal = word[:_MAX_WORD_CHARS].lower().replace("-", "_").replace(" ", "_")
    if word.startswith("-") and word[1:] in keys:
        return f"- {word[1:]}"
    if normal == "port" and "device" in keys and str(value.value)[:1] in ("/", "s"):
        return "device"
    for meant in _SYNONYMS.get(normal, ()):
        if meant.partition(":")[0] in keys:
            return meant
    return next(iter(difflib.get_close_matches(word[:_MAX_WORD_CHARS].lower(), keys, n=1)), "")


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """`did you mean '...'?` with the nearest of `words`; empty if none is near."""
    near = difflib.get_close_matches(word[:_MAX_WORD_CHARS].lower(), words, n=1)
    return f"did you mean '{near[0]}'?" if near else ""
