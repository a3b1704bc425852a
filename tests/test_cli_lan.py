"""Commands that tell other machines of the ports: what they print, and with which exit code."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from gateway.cli import main
from gateway.pool_store import FILE_NAME
from gateway.pool_table import PoolTable, Record
from gateway.state_file import write_state
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
    write_state(tmp_path / FILE_NAME, PoolTable([Record("shelf", 4100, "", "1-1", 1)]).to_json())
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
    assert "is no host" in capsys.readouterr().err
