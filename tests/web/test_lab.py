"""What the rooms of the HTTP server see of the service."""

from pathlib import Path

import structlog

from gateway.web.http_access import Policy
from gateway.web.lab import Lab
from tests.support.http_lab import running
from tests.support.pty_board import PtyBoard, serving


async def test_a_port_is_found_by_its_name_as_long_as_it_is_served(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            ports = running(served)
            lab = Lab(lambda: ports, "1", Policy(None), structlog.get_logger())
            assert lab.port("desk") is ports[0]
            assert lab.port("Desk") is None
            ports.clear()
            assert lab.port("desk") is None
