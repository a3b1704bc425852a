"""Which plugged-in device each port of the YAML has, and which are left for pools.

Pure, and without memory: what is plugged in decides, never what was there first. Where several
ports want one device, or one port fits several, nobody gets it; a person is told instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gateway.config.usb_match import DeviceChoice, UsbMatch, UsbTty

#: More of them would not help whoever reads the message.
_MAX_TOLD = 4


@dataclass(frozen=True, slots=True)
class Assignment:
    """The device of each port: `paths` to open and `problems` by the port's name.

    A port that is in neither has no device. `held` are the ttys of `paths`; `free` are the ttys
    that no port wants and that can be opened now. A tty whose node in /dev is gone is in neither.
    """

    paths: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    held: tuple[UsbTty, ...] = ()
    free: tuple[UsbTty, ...] = ()


def assign(
    ports: Mapping[str, DeviceChoice], ttys: Sequence[UsbTty], real_paths: Mapping[str, str]
) -> Assignment:
    """Give each port its device.

    `real_paths` says for the path of each tty, and for each path that a port names and that
    exists, where it leads.
    """
    # A device that is being unplugged loses its node first. It fits no port then, and must not
    # look free to a pool either.
    there = [tty for tty in ttys if tty.path in real_paths]
    index = _Index(there)
    wanted = {name: _wanted_by(choice, index, real_paths) for name, choice in ports.items()}
    holders: dict[str, list[str]] = {}
    for name, paths in wanted.items():
        for path in paths:
            holders.setdefault(real_paths[path], []).append(name)
    by_path = {tty.path: tty for tty in ttys}
    paths_of_ports: dict[str, str] = {}
    problems: dict[str, str] = {}
    for name, paths in wanted.items():
        rivals = [each for path in paths for each in holders[real_paths[path]] if each != name]
        if len(paths) > 1:
            told = _listed([str(by_path.get(path, path)) for path in paths])
            problems[name] = f"{len(paths)} devices fit: {told}"
        elif rivals:
            told = _listed(sorted(rivals))
            problems[name] = f"{by_path.get(paths[0], paths[0])} fits {told} as well"
        elif paths:
            paths_of_ports[name] = paths[0]
    opened = {real_paths[path] for path in paths_of_ports.values()}
    return Assignment(
        paths_of_ports,
        problems,
        held=tuple(tty for tty in there if real_paths[tty.path] in opened),
        free=tuple(tty for tty in there if real_paths[tty.path] not in holders),
    )


def jtag_note(tty: UsbTty) -> str:
    """Why a channel for JTAG is not served, and what to do if it should be."""
    return f"JTAG channel; to serve it all the same, give a port `interface: {tty.interface}`"


class _Index:
    """Finds the devices that a match fits without asking each: hundreds of ports, as many devices.

    It is asked on the event loop, at each plug.
    """

    def __init__(self, ttys: Sequence[UsbTty]) -> None:
        self._all = ttys
        self._by_location: dict[str, list[UsbTty]] = {}
        self._by_serial: dict[str, list[UsbTty]] = {}
        for tty in ttys:
            self._by_location.setdefault(tty.location, []).append(tty)
            self._by_serial.setdefault(tty.serial, []).append(tty)

    def fitting(self, match: UsbMatch) -> list[UsbTty]:
        """The devices that a match fits."""
        near: Sequence[UsbTty] = self._all
        if match.location is not None:
            near = self._by_location.get(match.location, ())
        elif match.serial is not None:
            near = self._by_serial.get(match.serial, ())
        return [tty for tty in near if match.fits(tty)]


def _wanted_by(choice: DeviceChoice, index: _Index, real_paths: Mapping[str, str]) -> list[str]:
    """The paths of all that the first alternative fits which fits any."""
    for alternative in choice.alternatives:
        if isinstance(alternative, str):
            fitting = [alternative] if alternative in real_paths else []
        else:
            fitting = [tty.path for tty in index.fitting(alternative)]
        if fitting:
            return fitting
    return []


def _listed(texts: Sequence[str]) -> str:
    more = len(texts) - _MAX_TOLD
    return ", ".join(texts[:_MAX_TOLD]) + (f" and {more} more" if more > 0 else "")
