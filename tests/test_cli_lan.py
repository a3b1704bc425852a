"""Commands that tell other machines of the ports: what they print, and with which exit code."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from gateway.cli.main import main
from gateway.usb.pools import PoolTable, Record, write_table
from tests.support.processes import Service

PORTS = """\
ports:
  - {name: desk, tcp: 4001, host: 0.0.0.0, device: /dev/a}
  - {name: own, tcp: 4002, device: /dev/b}
  - {name: shelf, tcp: 4100-4199, host: 0.0.0.0, device: {usb: "10c4:*"}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.yaml"
    path.write_text(PORTS)
    return path


def test_labgrid_is_told_of_the_ports_of_a_file_and_the_operator_of_the_rest(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table(tmp_path, PoolTable([Record("shelf", 4100, "", "1-1", 1)]).to_json())
    command = ["export", "labgrid", str(config), "--host", "lab", "--state-dir", str(tmp_path)]
    assert main(command) == 0
    out, err = capsys.readouterr()
    groups = yaml.safe_load(out)
    assert {name: group["NetworkSerialPort"]["port"] for name, group in groups.items()} == {
        "desk": 4001,
        "shelf-4100": 4100,
    }
    assert err == "esp-gateway: left out: own: listens at 127.0.0.1, for this machine only\n"


def test_nothing_to_export_is_an_error_that_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "gateway.yaml"
    config.write_text("ports: [{name: own, tcp: 4001, device: /dev/a}]\n")
    assert main(["export", "labgrid", str(config), "--host", "lab"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "esp-gateway: no port can be exported",
        "  own: listens at 127.0.0.1, for this machine only",
    ]


def test_without_a_file_the_running_service_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "gateway.yaml"
    config.write_text(f"ports: [{{name: desk, tcp: 0, device: {tmp_path}/tty, protocol: raw}}]\n")
    command = [
        "export",
        "labgrid",
        "--host",
        "localhost",
        "--socket",
        str(tmp_path / "status.sock"),
    ]
    assert main(command) == 1
    assert "no service runs here" in capsys.readouterr().err
    with Service(config, {"RUNTIME_DIRECTORY": str(tmp_path)}) as service:
        tcp_port = int(service.wait_for_line(r'"tcp_port": (\d+), "event": "listen_started"')[1])
        service.wait_for_line("status_served")
        assert main(command) == 0
    assert yaml.safe_load(capsys.readouterr().out)["desk"]["NetworkSerialPort"] == {
        "host": "localhost",
        "port": tcp_port,
        "speed": 115200,
        "protocol": "raw",
    }


@pytest.mark.parametrize("host", ["", "my lab", "lab\n"])
def test_what_can_be_no_host_is_refused(
    host: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["export", "labgrid", str(config), "--host", host])
    assert exit_info.value.code == 2
    assert "expected a name or an address" in capsys.readouterr().err


def test_discover_prints_what_it_finds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["discover", "--timeout", "0.1", "--interface", "lo", "--json"]) == 0
    # Others may announce on loopback meanwhile.
    assert isinstance(json.loads(capsys.readouterr().out), list)


@pytest.mark.parametrize("timeout", ["0", "-1", "nan", "1e9", "soon"])
def test_a_time_that_makes_no_sense_is_refused(
    timeout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["discover", f"--timeout={timeout}"])
    assert exit_info.value.code == 2
    assert "expected 0.1 to 3600 seconds" in capsys.readouterr().err


def test_discover_needs_its_package_and_its_interface(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["discover", "--interface", "nosuch0"]) == 1
    assert capsys.readouterr().err == (
        "esp-gateway: no network interface nosuch0 with an address\n"
    )
    monkeypatch.setitem(sys.modules, "zeroconf", None)
    assert main(["discover"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "pip install 'esp-serial-gateway[mdns]'" in err


def test_check_warns_of_ports_that_will_not_be_announced(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text("mdns: true\n" + PORTS)
    assert main(["check", str(config)]) == 0
    out, err = capsys.readouterr()
    assert "no errors" in out
    assert err == "warning: own: not announced, it listens at 127.0.0.1 for this machine only\n"
