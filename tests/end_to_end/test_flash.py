"""`esp-gateway flash` with the real esptool on simulated boards, as its user sees it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.flash.plan import Outcome
from tests.end_to_end.conftest import BoardOf
from tests.support.boards import RunningBoard
from tests.support.images import ESP32, ESP32C3, ESP32S2, image_of
from tests.support.lab import Lab, LabBoard
from tests.support.processes import Service, run_tool
from tests.support.shim import build_shim
from tests.support.small_disk import names_on, with_small_disk

#: For hung tests only; a run takes 4 s on a quiet machine.
LIMIT_S = 240.0

FLASH = [sys.executable, "-m", "gateway", "flash"]
#: By chip: what is at its bootloader's place, its partition table's and its app's.
IMAGES = {
    "esp32": {0x1000: 20000, 0x8000: 3072, 0x10000: 60000},
    "esp32s2": {0x1000: 20000, 0x8000: 3072, 0x10000: 60000},
    "esp32c3": {0x0: 20000, 0x8000: 3072, 0x10000: 60000},
}
IMAGE_IDS = {"esp32": ESP32, "esp32s2": ESP32S2, "esp32c3": ESP32C3}
FLASH_BYTES = 0x20000


def build_in(folder: Path, chip: str = "esp32") -> bytes:
    """A build folder as ESP-IDF leaves it; returns what the flash is to hold afterwards."""
    flash = bytearray(b"\xff" * FLASH_BYTES)
    files = {}
    for offset, size in IMAGES[chip].items():
        data = random.Random(offset).randbytes(size)
        if offset != 0x8000:
            data = image_of(IMAGE_IDS[chip], size, offset)
        flash[offset : offset + size] = data
        files[hex(offset)] = f"image-{offset:x}.bin"
        (folder / files[hex(offset)]).write_bytes(data)
    content = {"flash_files": files, "extra_esptool_args": {"chip": "auto", "stub": True}}
    (folder / "flasher_args.json").write_text(json.dumps(content))
    return bytes(flash)


@pytest.fixture
def build(tmp_path: Path) -> Path:
    folder = tmp_path / "build"
    folder.mkdir()
    return folder


def flash(
    lab: Lab | LabBoard, target: str, *arguments: str | Path
) -> subprocess.CompletedProcess[str]:
    command = [*FLASH, "--http", lab.http, "--baud", "921600", f"127.0.0.1{target}", *arguments]
    return run_tool(command, LIMIT_S)


def read_back(board: LabBoard, folder: Path) -> bytes:
    path = folder / f"{board.name}.read"
    esptool = [sys.executable, "-m", "esptool", "--port", board.url, "--baud", "921600"]
    done = run_tool([*esptool, "read-flash", "0", hex(FLASH_BYTES), path], LIMIT_S)
    assert done.returncode == 0, done.stdout
    return path.read_bytes()


@pytest.mark.timeout(600)
def test_a_board_gets_what_was_built_and_runs_it(
    board_of: BoardOf, tmp_path: Path, build: Path
) -> None:
    wanted = build_in(build)
    board = board_of(http=True)
    done = flash(board, f":{board.tcp_port}", build)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "desk  connected to ESP32-D0WD-V3" in done.stdout
    assert "desk  written and verified in " in done.stdout.splitlines()[-1]
    assert board.wait_for_boots(3) == ["app", "download", "app"]
    assert read_back(board, tmp_path) == wanted


@pytest.mark.timeout(600)
@pytest.mark.parametrize("chip", ["esp32c3", "esp32s2"])
def test_boards_with_native_usb_come_back_running_their_app(
    board_of: BoardOf, build: Path, chip: str
) -> None:
    build_in(build, chip)
    board = board_of(chip=chip, http=True)
    done = flash(board, "/desk", build)
    assert done.returncode == 0, done.stdout + done.stderr
    boots = board.wait_for_boots(3)
    assert boots[0] == boots[-1] == "app"
    board.wait_for_state(runs="app")


@pytest.mark.timeout(600)
def test_several_boards_are_flashed_at_once_and_told_apart(tmp_path: Path, build: Path) -> None:
    build_in(build)
    with Lab(tmp_path, {"desk": "", "shelf": ""}, http=True) as lab:
        ports = ",".join(str(board.tcp_port) for board in lab.boards.values())
        done = flash(lab, f":{ports}", "0x10000", build / "image-10000.bin", "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        events = [json.loads(line) for line in done.stdout.splitlines()]
        for name in lab.boards:
            kinds = [event["event"] for event in events if event["port"] == name]
            assert kinds[0] == "upload"
            assert {"port", "started", "chip", "line", "progress", "verified"} <= set(kinds)
            assert kinds[-1] == "done"
            assert kinds.count("done") == 1


@pytest.mark.timeout(600)
def test_esptool_4_can_be_the_gateways(board_of: BoardOf, build: Path) -> None:
    path = os.environ.get("ESPTOOL4", "")
    if not shutil.which(path):
        pytest.skip("ESPTOOL4 does not name an esptool 4 executable; `make test` installs one")
    build_in(build)
    env = {"ESP_GATEWAY_ESPTOOL": path}
    board = board_of(http=True, env=env)
    done = flash(board, "/desk", "0x10000", build / "image-10000.bin", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    started = [line for line in done.stdout.splitlines() if '"started"' in line]
    assert '"esptool": "4.' in started[0]
    assert done.stdout.count('"progress"') > 2
    assert board.wait_for_boots(3)[-1] == "app"


@pytest.mark.timeout(600)
def test_esptool_resets_a_real_port_itself(tmp_path: Path, build: Path) -> None:
    shim = build_shim(tmp_path)
    build_in(build)
    with RunningBoard(f"sim://esp32?heartbeat_s=0&dir={tmp_path / 'board'}") as board:
        board.wait_for("app_started")
        shim.set_controls({board.by_path: board.control_path})
        config = tmp_path / "gateway.yaml"
        config.write_text(
            f"http: 127.0.0.1:0\nports:\n  - {{name: desk, tcp: 0, device: {board.by_path}}}\n"
        )
        with Service(config, shim.env()) as service:
            http = service.wait_for_line(r'"tcp_port": (\d+), "event": "http_started"')[1]
            service.wait_for_line(r'"event": "device_opened"')
            done = run_tool(
                [*FLASH, "--http", f"127.0.0.1:{http}", "lab/desk", build, "--verbose"], LIMIT_S
            )
            assert done.returncode == 0, done.stdout + done.stderr
            assert "Hard resetting" in done.stdout
            board.wait_for("app_started", 2)
            assert board.boots()[-1] == "app"
            assert "download" in board.boots()


@contextmanager
def flashing(lab: LabBoard, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A client that has got to writing an image, which takes it a minute and a half."""
    image = folder / "long.bin"
    image.write_bytes(random.Random(1).randbytes(1 << 20))
    command = [*FLASH, "--http", lab.http, "--baud", "115200", "lab/desk", "0x10000", str(image)]
    with subprocess.Popen(
        [*command, "--json"], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if '"progress"' in line:
                    break
            yield process
        finally:
            process.kill()


def until(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.05)


def port_of(lab: Lab | LabBoard) -> dict[str, Any]:
    host, _, tcp_port = lab.http.partition(":")
    with socket.create_connection((host, int(tcp_port))) as http:
        http.sendall(b"GET /api/v1/ports/desk HTTP/1.0\r\nHost: localhost\r\n\r\n")
        with http.makefile("rb") as answer:
            content: dict[str, Any] = json.loads(answer.read().partition(b"\r\n\r\n")[2])
            return content


@pytest.mark.timeout(600)
def test_a_board_that_vanishes_in_the_midst_is_incomplete_and_can_be_flashed_again(
    board_of: BoardOf, build: Path
) -> None:
    build_in(build)
    image = build / "image-10000.bin"
    board = board_of(http=True, keys={"grace_s": "0"})
    with flashing(board, build) as process:
        assert board.ask("unplug") == "ok"
        out, _ = process.communicate(timeout=LIMIT_S)
        last = json.loads(out.splitlines()[-1])
        assert (last["event"], last["outcome"]) == ("done", "incomplete")
        assert process.returncode == Outcome.INCOMPLETE.exit_code
    assert board.ask("plug") == "ok"
    until(lambda: port_of(board)["state"] == "idle")
    done = flash(board, "/desk", "0x10000", image)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_client_that_dies_in_the_midst_leaves_a_port_that_is_free(
    board_of: BoardOf, build: Path, number: signal.Signals
) -> None:
    build_in(build)
    image = build / "image-10000.bin"
    board = board_of(http=True)
    with flashing(board, build) as process:
        assert "esptool for " in port_of(board)["clients"][0]["address"]
        second = flash(board, "/desk", "0x10000", image)
        assert second.returncode == Outcome.BUSY.exit_code
        assert "desk: being flashed by " in second.stdout
        process.send_signal(number)
        process.communicate(timeout=LIMIT_S)
        assert process.returncode == (130 if number is signal.SIGINT else -number)
    until(lambda: port_of(board)["state"] == "idle")
    done = flash(board, "/desk", "0x10000", image)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(600)
@pytest.mark.parametrize("times", [1, 2])
def test_a_ctrl_c_says_what_it_has_left(board_of: BoardOf, build: Path, times: int) -> None:
    board = board_of(http=True)
    image = build / "long.bin"
    image.write_bytes(image_of(ESP32, 1 << 20))
    arguments = ["--http", board.http, "--baud", "115200", "lab/desk", "0x10000", str(image)]
    with subprocess.Popen(
        [*FLASH, *arguments, "--verbose"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        said = ""
        while "Writing at" not in said:
            line = process.stdout.readline()
            assert line, said
            said += line
        for _ in range(times):
            process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=LIMIT_S)
    assert "Traceback" not in said
    if times == 1:
        assert process.returncode == 130
        last = said.splitlines()[-1]
        assert last.startswith("desk  incomplete: interrupted while it was written: ")
        assert "until it is flashed again" in last
    else:
        assert process.returncode in {130, -signal.SIGINT}
    until(lambda: port_of(board)["state"] == "idle")


@pytest.mark.timeout(600)
def test_what_can_t_be_meant_is_refused_unless_forced(board_of: BoardOf, build: Path) -> None:
    build_in(build)
    text = build / "text.txt"
    text.write_text("This is no image.\n" * 300)
    board = board_of(http=True)
    done = flash(board, "/desk", text)
    assert done.returncode == Outcome.REFUSED.exit_code == 8
    assert "text.txt at 0x0 is not an image" in done.stderr
    done = flash(board, "/desk", "0x0", build / "image-1000.bin")
    assert done.returncode == 8
    assert "ESP32 starts its bootloader at 0x1000" in done.stderr
    other = build / "other.bin"
    other.write_bytes(image_of(ESP32C3))
    # Only its header tells that it is another chip's: esptool looks which chip there is.
    done = flash(board, "/desk", "0x10000", other)
    assert done.returncode == 8
    assert "This chip is ESP32, not ESP32-C3" in done.stdout
    # Only the flash itself tells how large it is.
    done = flash(board, "/desk", "0x3ff000", text)
    assert done.returncode == 8, done.stdout
    assert "will not fit in 4194304 bytes of flash" in done.stdout
    for arguments in ([text], ["0x10000", text]):
        done = flash(board, "/desk", *arguments, "--force")
        assert done.returncode == 0, done.stdout + done.stderr


def test_what_can_t_be_flashed_is_told_by_the_exit_code(board_of: BoardOf, build: Path) -> None:
    build_in(build)
    board = board_of(http=True)
    with socket.create_connection(("127.0.0.1", board.tcp_port)) as client:
        assert client.recv(1)
        done = flash(board, "/desk", build)
        assert done.returncode == Outcome.BUSY.exit_code
        name = "{}:{}".format(*client.getsockname())
        assert f"desk: in use by {name} since" in done.stdout
    until(lambda: port_of(board)["state"] == "idle")
    done = flash(board, "/shelf", build)
    assert done.returncode == Outcome.UNREACHABLE.exit_code
    assert f"has no port shelf; it has: desk ({board.tcp_port})" in done.stderr
    done = flash(board, "/desk", build, "--chip", "esp32s3")
    assert done.returncode == Outcome.REFUSED.exit_code
    assert "image-1000.bin at 0x1000 is an image of ESP32, but --chip esp32s3" in done.stderr
    assert board.boots() == ["app"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("disk", "sizes", "reason"),
    [
        # Found before the images are taken, and by the kernel while they come: for the folder and
        # one image in it there is room, for a second one there is not.
        ("size=256k", [1 << 20], "1048576 bytes are needed, 262144 are free"),
        ("nr_inodes=3", [5000, 5000], "No space left on device"),
    ],
)
def test_a_full_disk_is_told_and_the_board_is_left_alone(
    tmp_path: Path, disk: str, sizes: list[int], reason: str
) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    what: list[str | Path] = []
    for number, size in enumerate(sizes):
        image = tmp_path / f"{number}.bin"
        image.write_bytes(random.Random(number).randbytes(size))
        what += [hex(0x10000 + number * 0x10000), image]
    lab = Lab(tmp_path, {"desk": ""}, http=True, env={"TMPDIR": str(folder)})
    lab.service.args = [*with_small_disk(folder, disk), *lab.service.args]
    with lab:
        board = lab.boards["desk"]
        board.wait_for_app()
        before = board.log()
        done = flash(lab, "/desk", *what)
        assert done.returncode == Outcome.NOT_STORED.exit_code == 12, done.stdout + done.stderr
        assert f"the gateway can't store the images: {reason}" in done.stdout
        assert board.log() == before
        assert (port_of(lab)["state"], port_of(lab)["clients"]) == ("idle", [])
        assert names_on(folder, lab.service.pid) == []
        small = tmp_path / "small.bin"
        small.write_bytes(b"x" * 4096)
        done = flash(lab, "/desk", "0x10000", small)
        assert done.returncode == 0, done.stdout + done.stderr
        until(lambda: names_on(folder, lab.service.pid) == [])
    assert not list(folder.iterdir())
