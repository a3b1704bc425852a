"""Which two USB devices are one board: a chip's own USB and a UART bridge behind the board's hub.

Boards with an ESP32-S3 or another chip with USB have a second socket or a hub for a UART bridge.
Two boards on a hub of the lab look the same at first sight, so only what a hub itself says counts:
that both devices are parts of it (`removable` in sysfs is `fixed`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.config.usb_match import UsbTty
from gateway.protocol.board_kinds import BoardKind, kind_of

_ESPRESSIF = 0x303A


@dataclass(frozen=True, slots=True)
class Pair:
    """A chip's own USB and a bridge on the hub at `hub`.

    Where it is not certain, both are all that is on a hub that does not say whether it is a
    board's: to be looked at by a person.
    """

    ttys: tuple[UsbTty, UsbTty]
    hub: str
    is_certain: bool

    def __str__(self) -> str:
        paths = " and ".join(tty.path for tty in self.ttys)
        if self.is_certain:
            return f"{paths}: one board, with a hub of its own at {self.hub}"
        return f"{paths}: alone on the hub at {self.hub}, either two boards or one that has both"


def find_pairs(ttys: Sequence[UsbTty], locations: Sequence[str]) -> list[Pair]:
    """The pairs among the ttys; `locations` are those of all USB devices."""
    hubs: dict[str, list[UsbTty]] = {}
    for tty in ttys:
        hub, dot, _ = tty.location.rpartition(".")
        # Without a dot it is on the host's own root hub.
        if dot and not tty.is_jtag:
            hubs.setdefault(hub, []).append(tty)
    pairs = []
    for hub, members in hubs.items():
        fixed = _pair_of([tty for tty in members if tty.is_fixed])
        if fixed is not None:
            pairs.append(Pair(fixed, hub, is_certain=True))
            continue
        children = [each for each in locations if each.rpartition(".")[0] == hub]
        alone = _pair_of(members) if len(children) == 2 else None
        if alone is not None:
            pairs.append(Pair(alone, hub, is_certain=False))
    return pairs


def _pair_of(ttys: Sequence[UsbTty]) -> tuple[UsbTty, UsbTty] | None:
    """Both ttys, if they are just one of each kind, of two devices."""
    if len(ttys) != 2:
        return None
    first, second = ttys
    own = [tty for tty in ttys if _is_chips_own(tty)]
    bridges = [tty for tty in ttys if kind_of((tty.vendor_id, tty.product_id)) in _BRIDGES]
    if len(own) != 1 or len(bridges) != 1 or first.location == second.location:
        return None
    return first, second


_BRIDGES = {BoardKind.BRIDGE, BoardKind.FLOW_CONTROL_BRIDGE}


def _is_chips_own(tty: UsbTty) -> bool:
    kind = kind_of((tty.vendor_id, tty.product_id))
    return tty.vendor_id == _ESPRESSIF and kind in {BoardKind.USB_JTAG, BoardKind.USB_OTG}
