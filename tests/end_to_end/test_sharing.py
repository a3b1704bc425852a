"""A monitor that stays open all day while others flash: the real tools on the real service."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.test_esptool import ESPTOOL5, esptool, random_image
from tests.end_to_end.test_monitors import QUIT, idf_monitor
from tests.support.lab import Lab
from tests.support.processes import BackgroundProcess


@pytest.mark.timeout(600)
def test_idf_monitor_stays_open_while_esptool_flashes(tmp_path: Path) -> None:
    image = random_image(tmp_path / "app.bin", 64 * 1024)
    with Lab(tmp_path, {"desk": ""}, keys={"sharing": "preempt"}) as lab:
        board = lab.boards["desk"]
        with idf_monitor(board, "--no-reset") as monitor:
            monitor.wait_for(b"heartbeat")
            for turn in (1, 2):
                written = esptool(board, "--baud", "921600", "write-flash", "0x10000", image)
                assert "Hash of data verified" in written
                monitor.wait_for(b"yours again ---", count=turn)
                assert monitor.screen.count(b"drives the port") == turn
                booted = monitor.screen.count(b"heartbeat")
                monitor.wait_for(b"heartbeat", count=booted + 2)
            assert board.boots() == ["app", *["download", "app"] * 2]
            monitor.type(b"version\r")
            monitor.wait_for(b"simulated app")
            monitor.type(QUIT)
            assert monitor.wait_until_ended() == 0
        assert board.boots() == ["app", *["download", "app"] * 2]


@pytest.mark.timeout(600)
def test_esptool_that_opens_its_port_again_does_not_take_it_back(tmp_path: Path) -> None:
    """It does so each second when it is cut off while it writes, here from the other's address."""
    image = random_image(tmp_path / "app.bin", 512 * 1024)
    with Lab(tmp_path, {"desk": ""}, keys={"sharing": "takeover"}) as lab:
        board = lab.boards["desk"]
        command = [*ESPTOOL5, "--port", board.url, "write-flash", "0x10000", str(image)]
        first = BackgroundProcess(command, {"PYTHONUNBUFFERED": "1"})
        first.start()
        try:
            first.wait_for_line("Writing at", 120)
            assert "Detected flash size" in esptool(board, "flash-id")
            first.wait_for_line("Lost connection, retrying")
        finally:
            first.kill()
        lab.service.wait_for_line('taken over from your address.*"event": "client_refused"')
