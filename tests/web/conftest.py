"""One port with a board, served over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.http_lab import Lab, http_client, running
from tests.support.pty_board import PtyBoard, serving


@pytest.fixture
@asynccontextmanager
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    """An exclusive RFC 2217 port `desk`, its board, and a client of the HTTP server."""
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served, http_client(running(served)) as client:
            yield Lab(board, served, client)
