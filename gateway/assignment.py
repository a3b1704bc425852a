"""Which plugged-in device each port of the YAML has, and which are left for pools.

Pure, and without memory: what is plugged in decides, never what was there first. Where several
ports want one device, or one port fits several, nobody gets it; a person is told instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gateway.usb_match import DeviceChoice, UsbTty

#: More of them would not help whoever reads the message.
_MAX_TOLD = 4


@dataclass(frozen=True, slots=True)
class Assignment:
    """Who has what: `paths` to open and `problems` by the port's name, `free` for no port.

    A port that is in neither has no device.
    """

    paths: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    free: tuple[UsbTty, ...] = ()


def assign(
    ports: Mapping[str, DeviceChoice], ttys: Sequence[UsbTty], real_paths: Mapping[str, str]
) -> Assignment:
    """Give each port its device.

    `real_paths` says for the path of each tty, and for each path that a port names and that
    exists, where it leads.
    """
    wanted = {name: _wanted_by(choice, ttys, real_paths) for name, choice in ports.items()}
    holders: dict[str, list[str]] = {}
    for name, paths in wanted.items():
        for path in paths:
            holders.setdefault(real_paths[path], []).append(name)
    by_path = {tty.path: tty for tty in ttys}
    result = Assignment(free=tuple(tty for tty in ttys if real_paths.get(tty.path) not in holders))
    for name, paths in wanted.items():
        rivals = [each for path in paths for each in holders[real_paths[path]] if each != name]
        if len(paths) > 1:
            told = _listed([str(by_path.get(path, path)) for path in paths])
            result.problems[name] = f"{len(paths)} devices fit: {told}"
        elif rivals:
            told = _listed(sorted(rivals))
            result.problems[name] = f"{by_path.get(paths[0], paths[0])} fits {told} as well"
        elif paths:
            result.paths[name] = paths[0]
    return result


def _wanted_by(
    choice: DeviceChoice, ttys: Sequence[UsbTty], real_paths: Mapping[str, str]
) -> list[str]:
    """The paths of all that the first alternative fits which fits any."""
    for alternative in choice.alternatives:
        if isinstance(alternative, str):
            fitting = [alternative] if alternative in real_paths else []
        else:
            fitting = [tty.path for tty in ttys if alternative.fits(tty) and tty.path in real_paths]
        if fitting:
            return fitting
    return []


def _listed(texts: Sequence[str]) -> str:
    more = len(texts) - _MAX_TOLD
    return ", ".join(texts[:_MAX_TOLD]) + (f" and {more} more" if more > 0 else "")
