"""One port as the HTTP interface shows it: what `esp-gateway status --json` tells, and more.

The fields are described in openapi.yaml.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from gateway.config.document import PortConfig
from gateway.ports.running_port import RunningPort
from gateway.protocol.board_kinds import UsbIds, row_of


def document_of(port: RunningPort) -> dict[str, Any]:
    """The port as it is now."""
    device = port.device
    status = device.status if device.is_open else None
    return {
        **asdict(port.snapshot()),
        **_way_in(port.config, port.way_in.tcp_port),
        "usb": _usb(device.usb_ids),
        "baud": None if status is None else status.settings.baudrate,
        "dtr": None if status is None else status.lines.dtr,
        "rts": None if status is None else status.lines.rts,
        "clients": [
            {"name": user.label, "drives": user in device.users.drivers} for user in device.users
        ],
        "recorded_from": device.recorder.begin,
        "recorded_to": device.recorder.end,
    }


def _way_in(config: PortConfig, tcp_port: int | None) -> dict[str, Any]:
    return {
        "protocol": config.protocol.value,
        "sharing": config.sharing.value,
        "host": config.host if config.connect is None else None,
        "tcp_port": tcp_port,
    }


def _usb(ids: UsbIds | None) -> dict[str, str | None] | None:
    if ids is None:
        return None
    row = row_of(ids)
    return {"ids": f"{ids[0]:04x}:{ids[1]:04x}", "chip": None if row is None else row.name}
