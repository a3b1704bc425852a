"""A simulated board without a gateway: its process, its files, its log."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from gateway.simulator.host import read_log
from gateway.simulator.url import parse_url
from tests.support.processes import BackgroundProcess


class RunningBoard(BackgroundProcess):
    """`python -m gateway.simulator URL`; the URL must say where its files go (`dir`)."""

    def __init__(self, url: str) -> None:
        super().__init__([sys.executable, "-m", "gateway.simulator", url])
        folder = parse_url(url).folder
        assert folder is not None
        self.tty_path = folder / "tty"
        self.control_path = folder / "control"
        self._log_path: Path = folder / "log.jsonl"

    def board_log(self) -> list[dict[str, object]]:
        """What has happened to the board, oldest first."""
        return read_log(self._log_path)

    def __enter__(self) -> Self:
        super().__enter__()
        self.wait_for_line("ready ")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, traceback)
