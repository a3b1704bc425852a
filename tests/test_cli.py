"""The command: what it prints, where to, and with which exit code."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import pytest
import structlog

from gateway.cli.main import main
from tests.support.certificates import Authority
from tests.support.processes import BackgroundProcess, Service, run_tool

RUN_LIMIT_S = 60.0

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


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "gateway.yaml"


def test_check_lists_the_ports_of_a_good_file(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(GOOD)
    assert main(["check", str(config)]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == f"{config}: no errors, 2 ports"
    assert lines[1] == "  desk: 127.0.0.1:4001 -> /dev/serial/by-id/desk"
    assert lines[2].startswith("  shelf: 0.0.0.0:0 -> sim://esp32")
    assert len(lines) == 3
    assert err == ""


def test_one_port_is_one_port(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text("ports:\n  - {name: desk, tcp: 4001, device: /dev/ttyUSB0}\n")
    assert main(["check", str(config)]) == 0
    assert capsys.readouterr().out.startswith(f"{config}: no errors, 1 port\n")


@pytest.mark.parametrize("command", [["check"], ["run", "--config"]])
def test_each_problem_of_a_file_is_one_line_on_stderr(
    config: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    config.write_text(BAD)
    assert main([*command, str(config)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert [line.split(" ")[0] for line in lines] == [f"{config}:2:"] + [f"{config}:3:"] * 2
    for problem in ("invalid tcp", "duplicate name", "unknown key 'devise'"):
        assert sum(problem in line for line in lines) == 1


@pytest.mark.parametrize("command", [["check"], ["run", "--config"]])
@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("missing.yaml", "No such file or directory"),
        (".", "it is a directory"),
        ("/dev/zero", "it is a character device"),
        # Opens, but not even root can read it.
        ("/proc/self/mem", "Input/output error"),
        ("no\0name", "embedded null byte"),
    ],
)
def test_a_file_that_can_not_be_read_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    path: str,
    reason: str,
) -> None:
    assert main([*command, str(tmp_path / path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert f"cannot read the file ({reason})" in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_one_line(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(GOOD)
    config.chmod(0)
    assert main(["check", str(config)]) == 2
    assert "(Permission denied)" in capsys.readouterr().err


def test_a_board_that_does_not_start_is_one_line_and_another_code(
    config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    config.write_text(
        f"ports:\n  - {{name: desk, tcp: 0, device: 'sim://esp32?dir={tmp_path}/file'}}\n"
    )
    assert main(["run", "--config", str(config)]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    (line,) = [line for line in err.splitlines() if not line.startswith("{")]
    assert line.startswith("esp-gateway: sim://esp32")
    assert "can't be started" in line


@pytest.mark.parametrize("arguments", [["serve"], ["run"], ["check"], ["demo", "x"]])
def test_wrong_arguments_are_told_with_the_code_of_wrong_input(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    assert capsys.readouterr().err.startswith("usage: esp-gateway")


@pytest.mark.parametrize("arguments", [[], ["export"]])
def test_a_command_alone_prints_its_help(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert out.startswith(" ".join(["usage: esp-gateway", *arguments]))
    assert err == ""


#: Commands that print something, and what argparse prints.
PRINTING = [["check", "{}"], ["devices"], ["status", "--socket", "{}.sock"], ["--help"], []]


@pytest.fixture
def served(config: Path) -> Iterator[Path]:
    """A configuration whose service runs."""
    config.write_text("ports: [{name: desk, tcp: 0, device: /dev/serial/by-id/x}]\n")
    command = [sys.executable, "-m", "gateway", "run", "--config", str(config)]
    with BackgroundProcess([*command, "--socket", f"{config}.sock"]) as service:
        service.wait_for_line("status_served")
        yield config


def command_of(arguments: list[str], config: Path) -> list[str]:
    return [sys.executable, "-m", "gateway", *(each.format(config) for each in arguments)]


def run_with(
    arguments: list[str], config: Path, *, out: int, error: int = subprocess.PIPE
) -> tuple[int, str]:
    """Exit code and standard error of a command with these as standard output and error."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        command_of(arguments, config),
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=error,
        text=True,
        timeout=RUN_LIMIT_S,
        check=False,
        env=environment,
    )
    return done.returncode, done.stderr


def test_a_reader_that_has_left_is_an_exit_code_and_no_traceback(served: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    for arguments in PRINTING:
        assert run_with(arguments, served, out=writing) == (128 + signal.SIGPIPE, "")
    wrong = ["check", "{}.none"]
    assert run_with(wrong, served, out=writing, error=writing)[0] == 128 + signal.SIGPIPE
    os.close(writing)


def test_a_full_disk_is_one_line_and_no_traceback(served: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    for arguments in PRINTING:
        assert run_with(arguments, served, out=full) == (
            1,
            "esp-gateway: standard output: No space left on device\n",
        )
    os.close(full)


def test_output_that_is_closed_is_none_at_all(served: Path) -> None:
    for arguments in PRINTING:
        command = " ".join(f"'{each}'" for each in command_of(arguments, served))
        done = run_tool(["bash", "-c", f"{command} <&- >&-"], RUN_LIMIT_S)
        assert (done.returncode, done.stderr) == (0, "")


def test_a_service_without_standard_streams_writes_its_log_nowhere_else(config: Path) -> None:
    config.write_text("ports: [{name: desk, tcp: 0, device: /dev/serial/by-id/x}]\n")
    command = [sys.executable, "-m", "gateway", "run", "--config", str(config)]
    shell = f'exec "$@" --socket {config}.sock <&- >&- 2>&-'
    with BackgroundProcess(["bash", "-c", shell, "bash", *command]) as service:
        deadline = time.monotonic() + RUN_LIMIT_S
        while not Path(f"{config}.sock").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        links = [Path(f"/proc/{service.pid}/fd/{number}").readlink() for number in range(3)]
        assert links == [Path("/dev/null")] * 3


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
def test_ctrl_c_ends_a_command_without_a_word(
    served: Path, arguments: list[str], waits_for: str
) -> None:
    env = dict(os.environ)
    if arguments[0] == "check":
        (served.parent / "yaml.py").write_text(BLOCKED_MODULE)
        env["PYTHONPATH"] = str(served.parent)
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
            deadline = time.monotonic() + RUN_LIMIT_S
            while not any("socket:" in target for target in targets_of(process.pid)):
                assert time.monotonic() < deadline
                time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=RUN_LIMIT_S)
    assert (process.returncode, err) == (-signal.SIGINT, "")


def targets_of(pid: int) -> list[str]:
    """Return what the descriptors of a process stand for."""
    targets = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            targets.append(str(entry.readlink()))
    return targets


def test_a_user_without_an_entry_in_the_passwd_can_use_all_commands(
    monkeypatch: pytest.MonkeyPatch, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_such_user(*_: object) -> None:
        raise KeyError("getpwuid(): uid not found: 54321")

    monkeypatch.setattr(pwd, "getpwuid", no_such_user)
    for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    config.write_text(GOOD)
    assert main(["devices", "--config", str(config)]) == 0
    assert main(["check", str(config)]) == 0
    (config.parent / "app.bin").write_bytes(b"\xe9" + bytes(100))
    capsys.readouterr()
    command = ["flash", "--http", "127.0.0.1:1", "127.0.0.1:4001"]
    assert main([*command, "0x10000", str(config.parent / "app.bin")]) > 0
    assert "127.0.0.1:1" in capsys.readouterr().err


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["--version"])
    assert exit_info.value.code == 0
    assert capsys.readouterr().out == f"esp-gateway {version('esp-serial-gateway')}\n"


def test_the_process_ends_with_the_code_and_without_a_traceback(config: Path) -> None:
    config.write_text(BAD)
    command = [sys.executable, "-m", "gateway", "run", "--config", str(config)]
    result = run_tool(command, RUN_LIMIT_S)
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 3
    assert "Traceback" not in result.stderr


def test_status_shows_the_ports_of_the_running_service(tmp_path: Path) -> None:
    config = tmp_path / "gateway.yaml"
    config.write_text(f"ports: [{{name: desk, tcp: 0, device: {tmp_path}/ttyUSB0}}]\n")
    socket_path = tmp_path / "status.sock"
    command = [sys.executable, "-m", "gateway", "status", "--socket", str(socket_path)]
    none_runs = run_tool(command, timeout_s=30)
    assert none_runs.returncode == 1
    assert (
        none_runs.stderr
        == f"esp-gateway: {socket_path}: no service runs here (another one: --socket)\n"
    )
    with Service(config, {"RUNTIME_DIRECTORY": str(tmp_path)}) as service:
        service.wait_for_line("status_served")
        head, desk = run_tool(command, timeout_s=30).stdout.splitlines()
        assert head.startswith("PORT")
        assert "desk" in desk
        (port,) = json.loads(run_tool([*command, "--json"], timeout_s=30).stdout)["ports"]
        assert port["name"] == "desk"


def test_check_reads_the_files_for_tls_and_only_warns_of_dates(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    authority = Authority(config.parent)
    yesterday = datetime.now(UTC) - timedelta(days=1)
    cert, key = authority.issue("old", "localhost", not_after=yesterday)
    text = "ports:\n  - name: desk\n    tcp: 4001\n    device: /dev/desk\n    tls:\n"
    text += f"      cert: {cert}\n      key: {{}}\n      client_ca: {authority.path}\n"
    config.write_text(text.format(key))
    assert main(["check", str(config)]) == 0
    out, err = capsys.readouterr()
    assert "  desk: 127.0.0.1:4001 with TLS and client certificates -> /dev/desk" in out
    assert err.startswith(
        f"{config}:6: warning: ports[0].tls: invalid cert '{cert}' (a certificate"
    )
    _, other = authority.issue("other", "localhost")
    config.write_text(text.format(other))
    assert main(["check", str(config)]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"{config}:7: ports[0].tls: invalid key '{other}' (key of another certificate): expected"
        " the PEM file with the certificate's private key, without a passphrase"
    ]
    assert main(["devices", "--config", str(config)]) == 0


def test_an_event_loop_that_does_not_exist_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ESP_GATEWAY_EVENT_LOOP", "trio")
    config = tmp_path / "gateway.yaml"
    config.write_text("ports:\n  - {name: desk, tcp: 0, device: /dev/no}\n")
    assert main(["run", "--config", str(config), "--socket", str(tmp_path / "status")]) == 1
    told = "esp-gateway: invalid ESP_GATEWAY_EVENT_LOOP 'trio': expected uvloop or asyncio\n"
    assert capfd.readouterr().err == told
