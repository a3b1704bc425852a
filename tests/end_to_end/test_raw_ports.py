"""Raw ports on the real service: esptool over socket://, nc, socat, and dialling out."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import serial

from gateway.simulator.board import pattern
from tests.end_to_end.conftest import BoardOf
from tests.end_to_end.test_esptool import ESPTOOL5, esptool4, random_image
from tests.support.lab import LabBoard
from tests.support.peers import program
from tests.support.processes import BackgroundProcess, Service, free_tcp_port, run_tool
from tests.support.terminal import Terminal

_LIMIT_S = 120

#: What makes esptool's socket:// work unattended.
FLASHER_PORT = {"protocol": "raw", "on_connect": "bootloader", "on_disconnect": "reset"}

#: What the app says last when it starts.
READY = b"ready\r\n"


def done_with(command: list[str | Path]) -> str:
    """What a tool says that must succeed."""
    done = run_tool(command, timeout_s=_LIMIT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wait_for_resets(board: LabBoard, modes: list[str]) -> None:
    """Wait until as many resets by the EN pin have led there; `--after no_reset` is none of them.

    esptool 4 has the bootloader start itself anew then, whatever it is told.
    """

    def resets(log: list[dict[str, object]]) -> list[object]:
        boots = [entry for entry in log if entry["event"] == "boot"]
        return [entry["mode"] for entry in boots[1:] if entry["cause"] != "software"]

    board.wait_for(lambda log: len(resets(log)) >= len(modes))
    assert resets(board.log()) == modes


@pytest.mark.timeout(400)
@pytest.mark.parametrize("major", [5, 4])
@pytest.mark.parametrize("options", ["default options", "no resets"])
def test_esptool_flashes_unattended_over_socket(
    board_of: BoardOf, tmp_path: Path, major: int, options: str
) -> None:
    dash = "-" if major == 5 else "_"
    no_resets = [f"--before=no{dash}reset", f"--after=no{dash}reset"]
    image = random_image(tmp_path / "image.bin", 32 * 1024)
    board = board_of(keys=FLASHER_PORT)
    tool = [
        *(ESPTOOL5 if major == 5 else esptool4()),
        *("--port", board.socket_url),
        *(no_resets if options == "no resets" else []),
    ]
    assert "Hash of data verified" in done_with([*tool, f"write{dash}flash", "0x10000", image])
    # Another command, another connection: the board is in its bootloader again.
    verified = done_with([*tool, f"verify{dash}flash", "0x10000", image])
    assert "erification successful" in verified or "verify OK (digest matched)" in verified
    wait_for_resets(board, ["download", "app", "download", "app"])


@pytest.mark.timeout(400)
def test_a_flasher_that_is_killed_leaves_the_board_in_its_app(
    board_of: BoardOf, tmp_path: Path
) -> None:
    board = board_of(keys=FLASHER_PORT)
    image = random_image(tmp_path / "image.bin", 256 * 1024)
    flasher = subprocess.Popen(
        [*ESPTOOL5, "--port", board.socket_url, "write-flash", "0x10000", image],
        stdout=subprocess.DEVNULL,
    )
    board.wait_for(lambda log: any(entry["event"] == "flash_written" for entry in log))
    flasher.kill()
    flasher.wait()
    assert board.wait_for_boots(3) == ["app", "download", "app"]


@pytest.mark.parametrize(
    ("command", "package", "options"),
    [
        ("socat", "socat", ["-", "TCP:127.0.0.1:{}"]),
        ("nc", "netcat-openbsd", ["127.0.0.1", "{}"]),
    ],
)
def test_a_pipe_shows_a_board_from_its_boot_on_and_carries_every_byte(
    board_of: BoardOf, command: str, package: str, options: list[str]
) -> None:
    keys = {"protocol": "raw", "on_connect": "reset"}
    board = board_of("heartbeat_s=0", keys=keys)
    arguments = [option.format(board.tcp_port) for option in options]
    with subprocess.Popen(
        [program(command, package), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as pipe:
        assert pipe.stdin is not None
        assert pipe.stdout is not None
        said = b""

        def read_until(end: bytes) -> bytes:
            nonlocal said
            while not said.endswith(end):
                byte = pipe.stdout.read(1) if pipe.stdout is not None else b""
                assert byte, said
                said += byte
            read, said = said, b""
            return read

        # The ROM's first words: nothing is lost, and nothing of before is shown.
        assert read_until(READY).startswith(b"ets ")
        pipe.stdin.write(b"bytes 20000\r")
        pipe.stdin.flush()
        assert pattern(20000) in read_until(pattern(20000))
        pipe.terminate()
    assert board.boots() == ["app", "app"]


def test_idf_monitor_over_socket_shows_a_board_and_talks_to_it(board_of: BoardOf) -> None:
    board = board_of(keys={"protocol": "raw"})
    command = [sys.executable, "-m", "esp_idf_monitor", "-d", "--port", board.socket_url]
    with Terminal(command) as monitor:
        monitor.wait_for(b"heartbeat")
        monitor.type(b"version\r")
        monitor.wait_for(b"simulated app")
        monitor.type(b"\x1d")  # Ctrl-]
        assert monitor.wait_until_ended() == 0
    assert board.boots() == ["app"]


@pytest.mark.timeout(400)
def test_socat_makes_a_raw_port_a_local_one(board_of: BoardOf, tmp_path: Path) -> None:
    tty = tmp_path / "ttyDesk"
    board = board_of(keys=FLASHER_PORT)
    socat = [program("socat", "socat"), "-d", "-d", f"PTY,link={tty},raw,echo=0"]
    with BackgroundProcess([*socat, f"TCP:127.0.0.1:{board.tcp_port}"]) as local:
        local.wait_for_line("starting data transfer loop")
        no_resets = ["--before=no-reset", "--after=no-reset"]
        said = done_with([*ESPTOOL5, "--port", tty, *no_resets, "flash-id"])
        assert "Detected flash size: 4MB" in said
        local.kill()
    assert board.wait_for_boots(3) == ["app", "download", "app"]


@contextlib.contextmanager
def cabin(folder: Path, keys: dict[str, str]) -> Iterator[tuple[Service, LabBoard]]:
    """A gateway that connects to `board.tcp_port` of this host."""
    board = LabBoard("cabin", free_tcp_port(), folder / "cabin")
    lines = [
        "ports:",
        "  - name: cabin",
        f"    connect: 127.0.0.1:{board.tcp_port}",
        f"    device: sim://esp32?name=cabin&dir={board.folder}&heartbeat_s=0",
        *(f"    {key}: {value}" for key, value in keys.items()),
    ]
    config = folder / "gateway.yaml"
    config.write_text("\n".join(lines) + "\n")
    with Service(config) as service:
        service.wait_for_line("device_opened")
        yield service, board


def far_end(board: LabBoard, tcp_port: int) -> BackgroundProcess:
    """Waits for the gateway, then for a tool at `tcp_port`, and joins the two."""
    listen = "TCP-LISTEN:{},bind=127.0.0.1,reuseaddr"
    addresses = [listen.format(board.tcp_port), listen.format(tcp_port)]
    return BackgroundProcess([program("socat", "socat"), *addresses])


@pytest.mark.timeout(400)
def test_a_board_that_the_gateway_connects_is_flashed_again_and_again(tmp_path: Path) -> None:
    local = free_tcp_port()
    tool = [*ESPTOOL5, "--port", f"socket://127.0.0.1:{local}"]
    with cabin(tmp_path, FLASHER_PORT) as (service, board):
        service.wait_for_line("connection refused.*dial_failed")
        for _ in range(2):
            with far_end(board, local) as relay:
                relay.wait_until_listening(local)
                assert "Detected flash size: 4MB" in done_with([*tool, "flash-id"])
        board.wait_for_boots(5)
        assert board.boots() == ["app", "download", "app", "download", "app"]
        assert len([line for line in service.log if "dial_connected" in line]) == 2


@pytest.mark.timeout(400)
def test_an_rfc_2217_client_works_through_an_interruption(tmp_path: Path) -> None:
    local = free_tcp_port()
    with cabin(tmp_path, {}) as (service, board):
        board.wait_for_app()
        for _ in range(2):
            with far_end(board, local) as relay:
                relay.wait_until_listening(local)
                url = f"rfc2217://127.0.0.1:{local}"
                with serial.serial_for_url(url, baudrate=115200, timeout=20) as client:
                    client.write(b"version\r")
                    assert b"simulated app" in client.read_until(b"app 1.0")
                    relay.kill()
        assert board.boots() == ["app"]
        assert not [line for line in service.log if "client_violated" in line]
