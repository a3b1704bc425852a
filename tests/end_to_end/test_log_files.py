"""Boards' log files under Debian's logrotate and on a full disk: what the board says is kept."""

from __future__ import annotations

import gzip
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.lab import Lab
from tests.support.peers import program
from tests.support.processes import BackgroundProcess, run_tool
from tests.support.small_disk import with_small_disk

_LIMIT_S = 30.0

STAMP = re.compile(rb"(?m)^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} ")


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + _LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def heartbeats(path: Path) -> int:
    return path.read_bytes().count(b"heartbeat") if path.exists() else 0


class Rotation:
    """What logrotate is told of one log file."""

    def __init__(self, folder: Path, log_file: Path, *options: str) -> None:
        self._program = program("logrotate", "logrotate")
        self._state = folder / "logrotate.state"
        self._config = folder / "logrotate.conf"
        lines = [f"{log_file} {{", "rotate 9", "size 1", *options, "}"]
        self._config.write_text("\n".join(lines) + "\n")
        self._config.chmod(0o600)

    def run(self) -> None:
        done = run_tool([self._program, "-f", "-s", self._state, self._config], _LIMIT_S)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("mode", ["create", "nocreate"])
def test_all_that_a_board_says_is_kept_when_files_are_moved(tmp_path: Path, mode: str) -> None:
    log_file = tmp_path / "desk.log"
    keys = {"log_file": str(log_file), "protocol": "raw"}
    with Lab(tmp_path, {"desk": "heartbeat_s=0.02"}, keys=keys) as lab:
        postrotate = ["postrotate", f"kill -HUP {lab.service.pid}", "endscript"]
        rotation = Rotation(tmp_path, log_file, mode, "compress", "delaycompress", *postrotate)
        with socket.create_connection(("127.0.0.1", lab.boards["desk"].tcp_port)) as client:
            for count in range(1, 4):
                wait_until(lambda: heartbeats(log_file) > 5)
                rotation.run()
                lab.service.wait_for_line("configuration_reloaded", count=count)
            wait_until(lambda: heartbeats(log_file) > 5)
            lab.service.send_signal(signal.SIGTERM)
            received = b"".join(iter(lambda: client.recv(65536), b""))
        lab.service.wait_for_line("service_stopped")
    aside = [
        gzip.decompress((tmp_path / f"desk.log.{number}.gz").read_bytes()) for number in (3, 2)
    ]
    written = [*aside, (tmp_path / "desk.log.1").read_bytes(), log_file.read_bytes()]
    assert all(STAMP.match(each) for each in written)
    assert received.count(b"heartbeat") > 20
    assert received in b"".join(STAMP.sub(b"", each) for each in written)
    assert not [line for line in lab.service.log if "log_file_not_written" in line]


def test_a_file_that_is_copied_and_truncated_is_filled_from_its_start(tmp_path: Path) -> None:
    log_file = tmp_path / "desk.log"
    with Lab(tmp_path, {"desk": "heartbeat_s=0.02"}, keys={"log_file": str(log_file)}):
        rotation = Rotation(tmp_path, log_file, "copytruncate")
        for _ in range(3):
            wait_until(lambda: heartbeats(log_file) > 20)
            rotation.run()
            wait_until(lambda: heartbeats(log_file) > 2)
            oldest = (tmp_path / "desk.log.1").read_bytes().split(b"\n")[0]
            assert STAMP.match(oldest)
            assert oldest not in log_file.read_bytes()
            assert b"\0" not in log_file.read_bytes()


def test_a_disk_that_was_full_gets_all_that_the_board_has_said_meanwhile(tmp_path: Path) -> None:
    disk, config = tmp_path / "disk", tmp_path / "gateway.yaml"
    disk.mkdir()
    config.write_text(
        f"ports: [{{name: desk, tcp: 0, device: 'sim://esp32?heartbeat_s=0.02',"
        f" log_file: {disk}/desk.log}}]\n"
    )
    unshared = with_small_disk(disk, "size=8k")
    command: list[str | Path] = [sys.executable, "-m", "gateway", "run", "--config", config]
    with BackgroundProcess([*unshared, *command]) as service:
        full = service.wait_for_line("log_file_not_written")
        assert "no space left on device" in full.string
        seen = Path(f"/proc/{service.pid}/root{disk}/desk.log")
        first = seen.read_bytes()
        seen.unlink()
        service.send_signal(signal.SIGHUP)  # so that nothing waits for the next try
        again = service.wait_for_line("log_file_written_again")
        assert '"dropped_bytes": 0' in again.string
        wait_until(seen.exists)
        # The file has been full in the midst of a line.
        said = STAMP.sub(b"", first + seen.read_bytes())
    numbers = [int(number) for number in re.findall(rb"heartbeat (\d+)", said)]
    assert numbers == sorted(set(numbers))
    assert len(numbers) > 20
