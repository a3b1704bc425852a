"""labgrid's own coordinator, exporter, client and driver use boards through what is exported.

labgrid brings a pyserial of its own, so it is in a virtual environment of its own: $LABGRID is
the folder of its commands; `make test` installs it.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.lab import Lab, LabBoard
from tests.support.processes import BackgroundProcess, run_tool
from tests.support.terminal import Terminal

#: A client imports grpc, which takes seconds on a slow machine.
_LIMIT_S = 90.0

#: A place's console as labgrid's tests have it, by the driver that they use.
DRIVER = """
from labgrid.target import Target
from labgrid.driver import SerialDriver
from labgrid.resource.remote import RemotePlace

target = Target("main")
RemotePlace(target, name="desk")
console = SerialDriver(target, name=None)
target.activate(console)
console.sendline("version")
console.expect("simulated app", timeout=60)
print("at", console.port.host, console.port.port)
target.deactivate(console)
"""


#: The environment file and the test of docs/operations.md.
ENVIRONMENT = """
targets:
  main:
    resources:
      RemotePlace:
        name: desk
    drivers:
      SerialDriver: {{}}
options:
  coordinator_address: {coordinator}
"""
TEST_BOARD = """
def test_version(target):
    console = target.get_driver("ConsoleProtocol")
    console.sendline("version")
    console.expect("simulated app", timeout=60)
"""
TEST_BOOT = """
def test_boot(target):
    console = target.get_driver("ConsoleProtocol")
    console.expect("rst:0x", timeout=60)
    console.expect("ready", timeout=60)
"""


class LabgridWorld:
    """A gateway's two boards, exported by what the gateway says, and a coordinator."""

    def __init__(
        self, commands: Path, folder: Path, stack: ExitStack, keys: Mapping[str, str]
    ) -> None:
        self.commands = commands
        socket = {"RUNTIME_DIRECTORY": str(folder)}
        boards = {"desk": "heartbeat_s=0", "shelf": "heartbeat_s=0"}
        self.lab = stack.enter_context(Lab(folder, boards, env=socket, keys=keys))
        self.lab.service.wait_for_line("status_served")
        resources = folder / "exporter.yaml"
        resources.write_text(exported(folder / "status.sock"))
        # Keeps its places in the folder that it runs in.
        in_folder = ["sh", "-c", 'cd "$0" && exec "$@"', str(folder)]
        listen = [str(commands / "labgrid-coordinator"), "-l", "127.0.0.1:0"]
        coordinator = BackgroundProcess([*in_folder, *listen])
        stack.callback(coordinator.kill)
        coordinator.start()
        tcp_port = coordinator.wait_for_line(r"listening on \S+:(\d+)", _LIMIT_S)[1]
        self.env = {"LG_COORDINATOR": f"127.0.0.1:{tcp_port}"}
        exporter = BackgroundProcess(
            [commands / "labgrid-exporter", "-n", "lab", resources], self.env
        )
        stack.callback(exporter.kill)
        exporter.start()
        exporter.wait_for_line("Exporter ready", _LIMIT_S)

    @property
    def coordinator(self) -> str:
        """Its address."""
        return self.env["LG_COORDINATOR"]

    def client(self, *arguments: str) -> str:
        """What `labgrid-client` prints."""
        command = [str(self.commands / "labgrid-client"), *arguments]
        result = run_tool(command, _LIMIT_S, self.env)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def reserve(self, board: LabBoard) -> tuple[str, str]:
        """Make the board's place, reserve and acquire it: where labgrid says it is."""
        place = ["-p", board.name]
        self.client(*place, "create")
        self.client(*place, "set-tags", f"board={board.name}")
        self.client(*place, "add-match", f"*/{board.name}/NetworkSerialPort")
        assert "state: allocated" in self.client("reserve", "--wait", f"board={board.name}")
        self.client(*place, "acquire")
        shown = self.client(*place, "show")
        found = re.search(r"'host': '(\S+)',\s+'port': (\d+)", shown)
        assert found, shown
        return found[1], found[2]


def exported(socket: Path) -> str:
    command = [sys.executable, "-m", "gateway", "export", "labgrid", "--host", "127.0.0.1"]
    result = run_tool([*command, "--socket", socket], _LIMIT_S)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def world(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[LabgridWorld]:
    """`request.param`, if given, has keys for the ports."""
    commands = Path(os.environ.get("LABGRID", ""))
    if (
        not (commands / "labgrid-client").is_absolute()
        or not (commands / "labgrid-client").exists()
    ):
        pytest.skip("LABGRID does not name the folder of labgrid's commands (make test does)")
    with ExitStack() as stack:
        yield LabgridWorld(commands, tmp_path, stack, getattr(request, "param", {}))


@pytest.mark.timeout(600)
def test_a_reserved_board_is_flashed_and_talked_to(world: LabgridWorld, tmp_path: Path) -> None:
    board = world.lab.boards["desk"]
    host, tcp_port = world.reserve(board)
    assert (host, int(tcp_port)) == ("127.0.0.1", board.tcp_port)

    esptool = [sys.executable, "-m", "esptool", "--port", f"rfc2217://{host}:{tcp_port}"]
    image = tmp_path / "app.bin"
    image.write_bytes(random.Random(1).randbytes(16 * 1024))
    flashed = run_tool([*esptool, "write-flash", "0x10000", image], 2 * _LIMIT_S)
    assert flashed.returncode == 0, flashed.stdout
    assert "Hash of data verified" in flashed.stdout
    assert board.wait_for_boots(3) == ["app", "download", "app"]

    result = run_tool([world.commands / "python", "-c", DRIVER], _LIMIT_S, world.env)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == f"at {host} {tcp_port}"
    # No client of the three has reset it by the way.
    assert board.boots() == ["app", "download", "app"]
    assert "released" in world.client("-p", "desk", "release")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("program", ["microcom", "telnet"])
def test_labgrid_client_opens_the_console(
    world: LabgridWorld, program: str, tmp_path: Path
) -> None:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"no {program} here (Debian packages microcom, inetutils-telnet)")
    # labgrid-client takes microcom where there is one; here it shall see only what it is to take.
    only = tmp_path / "only"
    only.mkdir()
    (only / program).symlink_to(found)
    board = world.lab.boards["shelf"]
    board.wait_for_app()
    world.reserve(board)
    command = [str(world.commands / "labgrid-client"), "-p", "shelf", "console"]
    with Terminal(command, {**world.env, "PATH": str(only)}, limit_s=_LIMIT_S) as terminal:
        terminal.wait_for(b"onnected to")
        terminal.wait_until_raw()
        terminal.type(b"version\r")
        terminal.wait_for(b"simulated app")
    assert board.boots() == ["app"]


def run_pytest(world: LabgridWorld, folder: Path, test: str) -> None:
    """Run a test in labgrid's environment, as the page says it."""
    (folder / "env.yaml").write_text(ENVIRONMENT.format(coordinator=world.coordinator))
    file = folder / "test_board.py"
    file.write_text(test)
    python: list[str | Path] = [world.commands / "python", "-m", "pytest", "-p", "no:cacheprovider"]
    clean = {"PYTEST_ADDOPTS": ""}
    done = run_tool([*python, "--lg-env", folder / "env.yaml", file], _LIMIT_S, clean, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


@pytest.mark.timeout(600)
def test_a_test_with_an_environment_file_talks_to_a_board(
    world: LabgridWorld, tmp_path: Path
) -> None:
    board = world.lab.boards["desk"]
    board.wait_for_app()
    world.reserve(board)
    run_pytest(world, tmp_path, TEST_BOARD)
    assert board.boots() == ["app"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("world", [{"protocol": "raw", "on_connect": "reset"}], indirect=True)
def test_a_raw_port_with_on_connect_shows_the_boot_to_each_test(
    world: LabgridWorld, tmp_path: Path
) -> None:
    board = world.lab.boards["desk"]
    board.wait_for_app()
    world.reserve(board)
    for boots in (2, 3):
        run_pytest(world, tmp_path, TEST_BOOT)
        assert board.boots() == ["app"] * boots
