"""What an operator chooses for a port besides its settings: who may use it, what is kept of it.

How the values are written in the YAML is document.py's and values.py's matter, what the
choices do that of whoever has them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from gateway.config.networks import EVERYBODY, Networks


class Opening(Enum):
    """While which the gateway has a port's tty open."""

    ALWAYS = "always"  # whenever it is there
    ON_CONNECT = "on_connect"  # while a client is connected; local tools have it otherwise


class Sharing(Enum):
    """What becomes of a client when another comes."""

    EXCLUSIVE = "exclusive"  # it keeps the port, the other is refused
    TAKEOVER = "takeover"  # it is closed, the other gets the port
    PREEMPT = "preempt"  # it watches until the other has left
    SHARED = "shared"  # both use the port


@dataclass(frozen=True, slots=True)
class Recording:
    """The operator's keys of these names.

    `record_kib` of the board's output are kept in memory, 0 for none. With a `log_file`, an
    absolute path, it is also written there; at `log_max_kib` the file is put aside, `log_keep` of
    those are kept.
    """

    record_kib: int = 64
    log_file: str | None = None
    log_max_kib: int = 1024
    log_keep: int = 3

    def of_port(self, name: str) -> Recording:
        """The same with the port's name in the place of `{name}`."""
        if self.log_file is None:
            return self
        return replace(self, log_file=self.log_file.replace("{name}", name))


@dataclass(frozen=True, slots=True)
class Access:
    """Which connections become sessions: the operator's keys of these names.

    `max_sessions` counts those who are refused, too, until they are gone. With
    `accept_any_protocol`, first bytes that are another protocol's greeting go to the board.
    """

    allow: Networks = EVERYBODY
    max_sessions: int = 32
    accept_any_protocol: bool = False


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """How many connections clients may have at a time, over all listeners that share the limits.

    An IPv6 address stands for its /64 (networks.peer_holder).
    """

    #: Twice what 64 ports with 32 sessions each need.
    max: int = 4096
    #: A CI host or a proxy with 16 sessions on each of 64 ports stays within.
    max_per_address: int = 1024


class SlowClient(Enum):
    """What becomes of the board's output that its client does not take."""

    PAUSE = "pause"  # it stays in the kernel, then at the board, until the client takes it
    DROP_OLDEST = "drop_oldest"  # some is kept, then the oldest is dropped
    DISCONNECT = "disconnect"  # some is kept, then the client is closed


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """What a client gets, and how long it is kept: the operator's keys of these names.

    `idle_timeout_s` without a byte either way end a session; 0 never does. Of the board's output
    that is not left in the kernel, `client_buffer_kib` are kept for a client that does not take it.
    With `replay`, a new client gets what was recorded before it came.
    """

    idle_timeout_s: float = 0.0
    slow_client: SlowClient = SlowClient.PAUSE
    client_buffer_kib: int = 256
    replay: bool = False
