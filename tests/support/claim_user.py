"""A client of a port without a connection: it notes what the port reports to its claim."""

from __future__ import annotations

from itertools import count

from gateway.errors import ClientError, DeviceError
from gateway.port.claim import Claim
from gateway.port.port import Port

_NUMBERS = count(50_000)


class User:
    """Implements claim.ClaimOwner; `said` has what was reported, in order."""

    def __init__(self, label: str = "") -> None:
        self.label = label or f"10.0.0.7:{next(_NUMBERS)}"
        self.said: list[str] = []
        self.received = b""
        self.is_leaving = False
        self._claim: Claim | None = None

    @property
    def claim(self) -> Claim:
        """Its claim, once it has asked."""
        assert self._claim is not None
        return self._claim

    @property
    def has_port(self) -> bool:
        """Whether the claim has the port, suspended or not."""
        last = self.said[-1].split()[0] if self.said else ""
        return last in {"granted", "suspended", "resumed", "busy", "ready"}

    def ask(self, port: Port) -> None:
        """Ask for the port."""
        self._claim = Claim(port, self.label, self)
        self.claim.request()

    def leave(self) -> None:
        """Give the port back."""
        self.claim.leave()

    def granted(self) -> None:
        self.said.append("granted")

    def refused(self, error: ClientError) -> None:
        self.said.append(f"refused: {error}")

    def suspended(self, by: str) -> None:
        self.said.append(f"suspended by {by}")

    def resumed(self) -> None:
        self.said.append("resumed")

    def replaced(self, by: str) -> None:
        self.said.append(f"replaced by {by}")

    def data_received(self, data: bytes) -> None:
        self.received += data

    def board_busy(self) -> None:
        self.said.append("busy")

    def board_ready(self) -> None:
        self.said.append("ready")

    def port_lost(self, error: DeviceError) -> None:
        self.said.append(f"lost: {error}")
