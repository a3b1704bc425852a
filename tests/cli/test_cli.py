"""The command: what each of its commands prints, where to, and with which exit code."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import pytest
import structlog
import yaml

import gateway.config.checks
from gateway.cli import serving
from gateway.cli.main import main
from gateway.flash.plan import Outcome
from gateway.usb.pools import PoolTable, Record, write_table
from tests.support.certificates import Authority
from tests.support.images import ESP32C3, image_of
from tests.support.processes import BackgroundProcess, Service, free_tcp_port, run_tool
from tests.support.tcp_client import GREETING

RUN_LIMIT_S = 60.0
COMMAND = [sys.executable, "-m", "gateway"]

GOOD = """\
ports:
  - {name: desk, tcp: 4001, device: /dev/serial/by-id/desk}
  - {name: shelf, tcp: 0, device: "sim://esp32", host: 0.0.0.0}
"""
BAD = """\
ports:
  - {name: desk, tcp: 70000, device: /dev/ttyUSB0}
  - {name: desk, tcp: 4001, devise: /dev/ttyUSB1}
"""
LOCAL = "ports: [{name: own, tcp: 4001, device: /dev/a}]\n"
EXPORTED = """\
ports:
  - {name: desk, tcp: 4001, host: 0.0.0.0, device: /dev/a}
  - {name: own, tcp: 4002, device: /dev/b}
  - {name: shelf, tcp: 4100-4199, host: 0.0.0.0, device: {usb: "10c4:*"}}
"""


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


class Cli:
    """Runs commands in this process; a word `{name}` is the path of that file in `folder`."""

    def __init__(self, folder: Path, captured: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._captured = captured

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, standard output and standard error."""
        words = [re.sub(r"\{(.*)\}", rf"{self.folder}/\1", each) for each in arguments]
        try:
            code = main(words)
        except SystemExit as error:
            code = int(str(error.code))
        out, err = self._captured.readouterr()
        return code, out, err

    def write(self, text: str, name: str = "gateway.yaml") -> Path:
        path = self.folder / name
        path.write_text(text)
        return path


@pytest.fixture
def cli(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Cli:
    return Cli(tmp_path, capfd)


# Wrong arguments and files, for all commands.


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["serve"], "invalid choice: 'serve'"),
        (["run"], "required: --config"),
        (["check"], "required: FILE"),
        (["demo", "x"], "unrecognized arguments: x"),
        *(
            (["export", "labgrid", f"--host={host}"], "expected a name or an address")
            for host in ("", "my lab", "lab\n")
        ),
        *(
            (["discover", f"--timeout={seconds}"], "expected 0.1 to 3600 seconds")
            for seconds in ("0", "-1", "nan", "1e9", "soon")
        ),
    ],
)
def test_wrong_arguments_have_the_exit_code_of_wrong_input(
    cli: Cli, arguments: list[str], reason: str
) -> None:
    code, _, err = cli(*arguments)
    assert code == 2
    assert err.startswith("usage: esp-gateway")
    assert reason in err


@pytest.mark.parametrize("arguments", [[], ["export"]])
def test_a_command_alone_prints_its_help(cli: Cli, arguments: list[str]) -> None:
    code, out, err = cli(*arguments)
    assert (code, err) == (0, "")
    assert out.startswith(" ".join(["usage: esp-gateway", *arguments]))


def test_version_is_the_packages(cli: Cli) -> None:
    assert cli("--version") == (0, f"esp-gateway {version('esp-serial-gateway')}\n", "")


@pytest.mark.parametrize("command", [["check"], ["run", "--config"]])
def test_each_problem_of_a_file_is_one_line_on_stderr(cli: Cli, command: list[str]) -> None:
    config = cli.write(BAD)
    code, out, err = cli(*command, str(config))
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert [line.split(" ")[0] for line in lines] == [f"{config}:2:"] + [f"{config}:3:"] * 2
    for problem in ("invalid tcp", "duplicate name", "unknown key 'devise'"):
        assert sum(problem in line for line in lines) == 1


@pytest.mark.parametrize("command", [["check"], ["run", "--config"]])
@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("{missing.yaml}", "No such file or directory"),
        ("{}", "it is a directory"),
        ("/dev/zero", "it is a character device"),
        # Opens, but not even root can read it.
        ("/proc/self/mem", "Input/output error"),
        ("no\0name", "embedded null byte"),
        pytest.param(
            "{secret.yaml}",
            "Permission denied",
            marks=pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything"),
        ),
    ],
)
def test_a_file_that_can_not_be_read_is_one_line(
    cli: Cli, command: list[str], path: str, reason: str
) -> None:
    cli.write(GOOD, "secret.yaml").chmod(0)
    code, out, err = cli(*command, path)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert f"cannot read the file ({reason})" in err


def test_a_user_without_an_entry_in_the_passwd_can_use_all_commands(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_such_user(*_: object) -> None:
        raise KeyError("getpwuid(): uid not found: 54321")

    monkeypatch.setattr(pwd, "getpwuid", no_such_user)
    for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    cli.write(GOOD)
    assert cli("devices", "--config", "{gateway.yaml}")[0] == 0
    assert cli("check", "{gateway.yaml}")[0] == 0
    (cli.folder / "app.bin").write_bytes(b"\xe9" + bytes(100))
    command = ["flash", "--http", "127.0.0.1:1", "127.0.0.1:4001", "0x10000", "{app.bin}"]
    assert "127.0.0.1:1" in cli(*command)[2]


# Output and signals of the process.

#: Commands that print something, and what argparse prints.
PRINTING = [["check", "{}"], ["devices"], ["status", "--socket", "{}.sock"], ["--help"], []]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A configuration whose service runs."""
    config = tmp_path_factory.mktemp("served") / "gateway.yaml"
    config.write_text("ports: [{name: desk, tcp: 0, device: /dev/serial/by-id/x}]\n")
    command = [*COMMAND, "run", "--config", str(config), "--socket", f"{config}.sock"]
    with BackgroundProcess(command) as service:
        service.wait_for_line("status_served")
        yield config


def command_of(arguments: list[str], config: Path) -> list[str]:
    return [*COMMAND, *(each.format(config) for each in arguments)]


@pytest.fixture
def broken_pipe() -> Iterator[int]:
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


@pytest.fixture
def full_disk() -> Iterator[int]:
    full = os.open("/dev/full", os.O_WRONLY)
    yield full
    os.close(full)


def run_with(
    arguments: list[str], config: Path, *, out: int, error: int = subprocess.PIPE
) -> tuple[int, str]:
    """Exit code and standard error of a command with these as standard output and error."""
    done = subprocess.run(
        command_of(arguments, config),
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=error,
        text=True,
        timeout=RUN_LIMIT_S,
        check=False,
        env={key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"},
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("arguments", PRINTING)
def test_output_that_can_t_be_written_is_no_traceback(
    served: Path, arguments: list[str], broken_pipe: int, full_disk: int
) -> None:
    assert run_with(arguments, served, out=broken_pipe) == (128 + signal.SIGPIPE, "")
    no_room = "esp-gateway: standard output: No space left on device\n"
    assert run_with(arguments, served, out=full_disk) == (1, no_room)
    command = " ".join(f"'{each}'" for each in command_of(arguments, served))
    closed = run_tool(["bash", "-c", f"{command} <&- >&-"], RUN_LIMIT_S)
    assert (closed.returncode, closed.stderr) == (0, "")


def test_errors_that_can_t_be_written_have_an_exit_code(served: Path, broken_pipe: int) -> None:
    wrong = ["check", "{}.none"]
    code, _ = run_with(wrong, served, out=broken_pipe, error=broken_pipe)
    assert code == 128 + signal.SIGPIPE


#: Hangs when it is imported, and says so.
BLOCKED_MODULE = "import time\nprint('importing', flush=True)\ntime.sleep(3600)\n"


@pytest.mark.parametrize(
    ("arguments", "waits_for"),
    [
        (["status", "--watch", "--socket", "{}.sock"], "output"),
        (["check", "{}"], "output"),  # of the blocked module
        (["discover", "--timeout", "60"], "socket"),
    ],
)
def test_ctrl_c_ends_a_command_without_output(
    served: Path, tmp_path: Path, arguments: list[str], waits_for: str
) -> None:
    env = dict(os.environ)
    if arguments[0] == "check":
        (tmp_path / "yaml.py").write_text(BLOCKED_MODULE)
        env["PYTHONPATH"] = str(tmp_path)
    with subprocess.Popen(
        command_of(arguments, served),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    ) as process:
        if waits_for == "output":
            assert process.stdout is not None
            assert process.stdout.readline()
        else:
            until(lambda: any("socket:" in target for target in targets_of(process.pid)))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=RUN_LIMIT_S)
    assert (process.returncode, err) == (-signal.SIGINT, "")


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + RUN_LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def targets_of(pid: int) -> list[str]:
    """Return what the descriptors of a process stand for, in their order."""
    targets = []
    for entry in sorted(Path(f"/proc/{pid}/fd").iterdir(), key=lambda each: int(each.name)):
        with contextlib.suppress(FileNotFoundError):
            targets.append(str(entry.readlink()))
    return targets


def test_a_service_without_standard_streams_writes_its_log_nowhere_else(cli: Cli) -> None:
    config = cli.write("ports: [{name: desk, tcp: 0, device: /dev/serial/by-id/x}]\n")
    shell = f'exec "$@" --socket {config}.sock <&- >&- 2>&-'
    command = ["bash", "-c", shell, "bash", *COMMAND, "run", "--config", str(config)]
    with BackgroundProcess(command) as service:
        until(lambda: Path(f"{config}.sock").exists())
        assert targets_of(service.pid)[:3] == ["/dev/null"] * 3


# run.


def test_a_board_that_does_not_start_is_one_line_and_another_code(cli: Cli) -> None:
    device = f"sim://esp32?dir={cli.write('', 'file')}"
    config = cli.write(f"ports:\n  - {{name: desk, tcp: 0, device: '{device}'}}\n")
    code, out, err = cli("run", "--config", str(config))
    assert (code, out) == (1, "")
    (line,) = [line for line in err.splitlines() if not line.startswith("{")]
    assert line.startswith("esp-gateway: sim://esp32")
    assert "can't be started" in line


def test_an_event_loop_that_does_not_exist_is_one_line(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESP_GATEWAY_EVENT_LOOP", "trio")
    config = cli.write(GOOD)
    reason = "esp-gateway: invalid ESP_GATEWAY_EVENT_LOOP 'trio': expected uvloop or asyncio\n"
    command = ["run", "--config", str(config), "--socket", f"{config}.sock"]
    assert cli(*command) == (1, "", reason)


# check.


def test_check_lists_the_ports_of_a_good_file(cli: Cli) -> None:
    config = cli.write(GOOD)
    code, out, err = cli("check", "{gateway.yaml}")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[:2] == [
        f"{config}: no errors, 2 ports",
        "  desk: 127.0.0.1:4001 -> /dev/serial/by-id/desk",
    ]
    assert lines[2].startswith("  shelf: 0.0.0.0:0 -> sim://esp32")
    assert len(lines) == 3
    cli.write(LOCAL)
    assert cli("check", "{gateway.yaml}")[1].startswith(f"{config}: no errors, 1 port\n")
    assert cli("check", "--quiet", "{gateway.yaml}") == (0, "", "")


def test_check_reads_the_files_for_tls_and_only_warns_of_dates(cli: Cli) -> None:
    authority = Authority(cli.folder)
    yesterday = datetime.now(UTC) - timedelta(days=1)
    cert, key = authority.issue("old", "localhost", not_after=yesterday)
    text = "ports:\n  - name: desk\n    tcp: 4001\n    device: /dev/desk\n    tls:\n"
    text += f"      cert: {cert}\n      key: {{}}\n      client_ca: {authority.path}\n"
    config = cli.write(text.format(key))
    code, out, err = cli("check", str(config))
    assert code == 0
    assert "  desk: 127.0.0.1:4001 with TLS and client certificates -> /dev/desk" in out
    assert err.startswith(
        f"{config}:6: warning: ports[0].tls: invalid cert '{cert}' (a certificate"
    )
    _, other = authority.issue("other", "localhost")
    cli.write(text.format(other))
    code, _, err = cli("check", str(config))
    assert (code, err.splitlines()) == (
        2,
        [
            f"{config}:7: ports[0].tls: invalid key '{other}' (key of another certificate):"
            " expected the PEM file with the certificate's private key, without a passphrase"
        ],
    )
    assert cli("devices", "--config", str(config))[0] == 0


def test_check_warns_of_ports_that_will_not_be_announced(cli: Cli) -> None:
    cli.write("mdns: true\n" + EXPORTED)
    code, out, err = cli("check", "{gateway.yaml}")
    assert code == 0
    assert "no errors" in out
    assert err == "warning: own: not announced, it listens at 127.0.0.1 for this machine only\n"


# status, export, discover.


def test_status_and_export_ask_the_running_service(cli: Cli) -> None:
    config = cli.write(
        f"ports: [{{name: desk, tcp: 0, device: {cli.folder}/tty, protocol: raw}}]\n"
    )
    status = ["status", "--socket", "{status.sock}"]
    export = ["export", "labgrid", "--host", "localhost", "--socket", "{status.sock}"]
    for command in (status, export):
        code, _, err = cli(*command)
        no_service = f"{cli.folder}/status.sock: no service runs here (another path: --socket)"
        assert (code, err) == (1, f"esp-gateway: {no_service}\n")
    with Service(config, {"RUNTIME_DIRECTORY": str(cli.folder)}) as service:
        tcp_port = int(service.wait_for_line(r'"tcp_port": (\d+), "event": "listen_started"')[1])
        service.wait_for_line("status_served")
        head, desk = cli(*status)[1].splitlines()
        assert head.startswith("PORT")
        assert "desk" in desk
        (port,) = json.loads(cli(*status, "--json")[1])["ports"]
        assert port["name"] == "desk"
        code, out, _ = cli(*export)
    assert code == 0
    assert yaml.safe_load(out)["desk"]["NetworkSerialPort"] == {
        "host": "localhost",
        "port": tcp_port,
        "speed": 115200,
        "protocol": "raw",
    }


def test_export_writes_the_ports_of_a_file_and_names_the_rest(cli: Cli) -> None:
    cli.write(EXPORTED)
    table = PoolTable([Record("shelf", 4100, "", "1-1", 1)])
    write_table(cli.folder, table.to_json())
    command = ["export", "labgrid", "{gateway.yaml}", "--host", "lab", "--state-dir", "{}"]
    code, out, err = cli(*command)
    groups = yaml.safe_load(out)
    assert code == 0
    assert {name: group["NetworkSerialPort"]["port"] for name, group in groups.items()} == {
        "desk": 4001,
        "shelf-4100": 4100,
    }
    assert err == "esp-gateway: left out: own: listens at 127.0.0.1, for this machine only\n"
    cli.write(LOCAL)
    code, out, err = cli(*command)
    assert (code, out, err.splitlines()) == (
        1,
        "",
        [
            "esp-gateway: no port can be exported",
            "  own: listens at 127.0.0.1, for this machine only",
        ],
    )


def test_discover(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = cli("discover", "--timeout", "0.1", "--interface", "lo", "--json")
    # Others may announce on loopback meanwhile.
    assert (code, type(json.loads(out))) == (0, list)
    no_interface = "esp-gateway: no network interface nosuch0 with an address\n"
    assert cli("discover", "--interface", "nosuch0") == (1, "", no_interface)
    monkeypatch.setitem(sys.modules, "zeroconf", None)
    code, out, err = cli("discover")
    assert (code, out) == (1, "")
    assert "pip install 'esp-serial-gateway[mdns]'" in err


# flash; what it does otherwise is in tests/end_to_end.


@pytest.mark.parametrize(
    ("arguments", "outcome", "reason"),
    [
        (["lab", "{app.bin}"], 2, "invalid board address 'lab': expected HOST:PORT"),
        (["lab:4001", "nothing.bin"], 2, "nothing.bin: No such file"),
        (["lab:4001", "0x1000", "{app.bin}", "0x1001", "{app.bin}"], 2, "overlaps"),
        (["lab:4001", "{app.bin}", "--chip", "ESP 32"], 2, "invalid chip 'ESP 32': expected"),
        (["lab:4001", "{app.bin}", "--http", "ftp://lab"], 2, "invalid HTTP address 'ftp://lab'"),
        (["lab:4001", "{app.bin}", "--token-file", "/nothing"], 2, "/nothing: No such file"),
        (["lab:4001", "{app.bin}", "--token-file", "{empty}"], 2, "no token in it: expected one"),
        (["lab:4001", "{app.bin}", "--http", "https://lab", "--ca", "/nothing"], 2, "/nothing"),
        # Before a gateway is asked.
        (["lab:4001", "{text.txt}"], 8, "text.txt at 0x0 is not an image: "),
        (["lab:4001", "{text.txt}"], 8, "Use --force to flash anyway.\n"),
        (["lab:4001", "{app.bin}"], 3, "http://127.0.0.1:{port}: Connection refused"),
    ],
)
def test_a_flash_that_can_t_begin_is_one_line(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, arguments: list[str], outcome: int, reason: str
) -> None:
    tcp_port = free_tcp_port()
    monkeypatch.setenv("ESP_GATEWAY_HTTP", f"127.0.0.1:{tcp_port}")
    (cli.folder / "app.bin").write_bytes(image_of(ESP32C3))
    cli.write("", "empty")
    cli.write("This is no image.", "text.txt")
    code, _, err = cli("flash", *arguments)
    assert code == outcome in {each.exit_code for each in Outcome}
    assert reason.replace("{port}", str(tcp_port)) in err
    assert err.startswith("esp-gateway: ")
    assert err.count("\n") == 1


def test_the_help_of_flash_has_examples(cli: Cli) -> None:
    assert "esp-gateway flash lab:4001 build/" in cli("flash", "--help")[1]


# demo.


def test_the_demo_takes_free_ports_where_its_own_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert serving._DEMO_TCP_PORT == 4001  # as documented
    first = free_tcp_port()
    monkeypatch.setattr(serving, "_DEMO_TCP_PORT", first)
    assert serving.demo_configuration().ports[0].tcp_port == first
    with socket.create_server(("127.0.0.1", first)):
        ports = serving.demo_configuration().ports
    assert [(port.name, port.host) for port in ports] == [
        ("desk", "127.0.0.1"),
        ("shelf", "127.0.0.1"),
    ]
    assert ports[0].tcp_port == 0


def test_without_the_packages_for_the_page_the_demo_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert serving.demo_configuration().http is not None
    monkeypatch.setattr(gateway.config.checks, "HTTP_PACKAGES", ("no_such_package",))
    assert serving.demo_configuration().http is None
    assert "esp-serial-gateway[web]" in serving.commands_to_try({"desk": 50001}, None)


def test_the_demo_serves_what_it_prints_and_ends_with_its_terminal() -> None:
    with BackgroundProcess([*COMMAND, "demo"]) as process:
        desk = process.wait_for_line(r"'desk' is served at rfc2217://127\.0\.0\.1:(\d+)")[1]
        shelf = process.wait_for_line(r"'shelf' is served at rfc2217://127\.0\.0\.1:(\d+)")[1]
        page = process.wait_for_line(r"The page with them is at http://127\.0\.0\.1:(\d+)/")[1]
        process.wait_for_line("Ctrl-C ends")
        for tcp_port in (desk, shelf):
            with socket.create_connection(("127.0.0.1", int(tcp_port))) as client:
                assert client.recv(len(GREETING), socket.MSG_WAITALL) == GREETING
        with socket.create_connection(("127.0.0.1", int(page))) as client:
            client.sendall(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
            assert b" 200 " in client.recv(100)
        process.send_signal(signal.SIGHUP)
        process.wait_for_line("service_stopped")
        assert process.wait_for_end() == 0
    commands = [line for line in process.log if re.match(r"  \S", line)]
    assert len(commands) == 5
    assert all(desk in command and "{" not in command for command in commands)


def test_a_demo_that_was_started_with_nohup_ignores_sighup() -> None:
    with BackgroundProcess(["nohup", *COMMAND, "demo"]) as process:
        process.wait_for_line("Ctrl-C ends")
        status = Path(f"/proc/{process.pid}/status").read_text()
        [ignored] = re.findall(r"^SigIgn:\t(.*)$", status, re.MULTILINE)
        assert int(ignored, 16) & 1 << signal.SIGHUP - 1
