"""A program that stands in for esptool where only what it says, and how it ends, matters.

It answers `version`, and for everything else plays a script; its arguments are in a file.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

_PROGRAM = """
import json, os, pathlib, sys, time
if sys.argv[1:] == ["version"]:
    print("esptool v5.6.0\\n5.6.0")
    raise SystemExit
folder = pathlib.Path({folder!r})
(folder / "arguments.new").write_text(json.dumps([os.getpid(), os.getcwd(), sys.argv[1:]]))
(folder / "arguments.new").rename(folder / "arguments")
{script}
"""

#: What esptool says of one image that is written.
WRITES = """
for line in (
    "Chip type:          ESP32-D0WD-V3 (revision v3.1)",
    "Writing '0x1000.bin' at 0x00001000...",
    "Writing at 0x00005000 - 50.0% 16.00kB/32.00kB [0s] ",
    "Wrote 32768 bytes at 0x00001000 in 0.4 seconds (518.8 kbit/s).",
    "Verifying written data...",
    "Hash of data verified.",
):
    print(line)
"""

#: It stops in the midst of an image until it is ended.
HANGS = """
print("Chip type:          ESP32-D0WD-V3 (revision v3.1)")
print("Writing at 0x00005000 - 50.0% 16.00kB/32.00kB [0s] ")
while True:
    time.sleep(1)
"""


class FakeEsptool:
    """Its files are in `folder`; `command` is for $ESP_GATEWAY_ESPTOOL."""

    def __init__(self, folder: Path, script: str) -> None:
        self._folder = folder
        program = folder / "esptool_of_this_test.py"
        program.write_text(_PROGRAM.format(folder=str(folder), script=script))
        self.command = shlex.join([sys.executable, str(program)])

    @property
    def has_begun(self) -> bool:
        """Whether it was run for more than its version."""
        return (self._folder / "arguments").exists()

    @property
    def pid(self) -> int:
        """Of its last run."""
        pid: int = self._run()[0]
        return pid

    @property
    def runs(self) -> bool:
        """Whether its last run has not ended."""
        return Path(f"/proc/{self.pid}").exists()

    @property
    def working_folder(self) -> Path:
        """Where it was last run."""
        return Path(self._run()[1])

    @property
    def arguments(self) -> list[str]:
        """What it was told in its last run."""
        arguments: list[str] = self._run()[2]
        return arguments

    def _run(self) -> list[Any]:
        content: list[Any] = json.loads((self._folder / "arguments").read_text())
        return content
