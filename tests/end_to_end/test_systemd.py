"""The service under a real systemd, installed by the script as its user would: one life of it."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.booted_machine import BootedMachine, debian_python, why_not

ROOT = Path(__file__).parent.parent.parent
SCRIPT = "/srv/systemd/install.sh"
UNIT = "esp-gateway"
CONFIG = "/etc/esp-gateway/gateway.yaml"

#: Shorter than in the unit, and longer than a busy machine takes to start Python or to turn a loop.
SHORT_START_LIMIT_S = 15
SHORT_WATCHDOG_S = 6

CONFIGURATION = """
ports:
  - {name: desk, tcp: 4001, device: 'sim://esp32', log_file: /var/log/esp-gateway/desk.log}
  - {name: gone, tcp: 4002, device: /dev/ttyUSB0}
"""

#: What a person at a simulated board's prompt sees, over pyserial's own client.
ASK_FOR_VERSION = """
import serial
with serial.serial_for_url("rfc2217://127.0.0.1:4001", 115200, timeout=20) as port:
    port.read_until(b"heartbeat")
    port.write(b"version\\r")
    print(port.read_until(b"simulated app"))
"""


class Host:
    """The lab host: the service on it, and what its user does to it."""

    def __init__(self, machine: BootedMachine) -> None:
        self.machine = machine

    def install(self, *arguments: str) -> str:
        done = self.try_to_install(SCRIPT, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def try_to_install(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        # pip goes to its index the way this machine does.
        pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        return self.machine.run(script, *arguments, outside_network=True, environment=pip)

    def systemctl(self, *arguments: str) -> str:
        return self.machine.output_of("systemctl", *arguments, UNIT)

    def property(self, name: str) -> str:
        return self.machine.property_of(UNIT, name)

    def journal(self, *arguments: str) -> str:
        command = ["journalctl", "--no-pager", "--quiet", "--output=cat", f"--unit={UNIT}"]
        return self.machine.output_of(*command, *arguments)

    def write(self, path: str, text: str) -> None:
        self.machine.output_of("mkdir", "-p", str(Path(path).parent))
        self.machine.output_of("sh", "-c", f'printf "%s" "$1" > {path}', "sh", text)

    def wait_for_status(self, status: str) -> None:
        self.machine.wait_until(lambda: self.property("StatusText") == status, status)

    def asks_for_version(self) -> str:
        asked = self.machine.run_client(sys.executable, "-c", ASK_FOR_VERSION)
        assert asked.returncode == 0, asked.stderr
        return asked.stdout


@pytest.mark.timeout(900)
@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
@pytest.mark.skipif(debian_python() is None, reason="/usr/bin/python3 is too old or has no venv")
def test_a_service_lives_from_its_installation_to_its_removal(tmp_path: Path) -> None:
    with BootedMachine(tmp_path, ROOT) as machine:
        host = Host(machine)
        assert "Installed" in host.install()
        host.write(CONFIG, CONFIGURATION)
        starts_and_serves(host)
        has_no_privileges(host)
        keeps_what_a_board_says(host)
        tells_everybody_its_status(host)
        reloads(host)
        refuses_to_reload_a_wrong_file(host)
        tells_levels(host)
        is_ended_and_started_again_when_stuck(host)
        waits_for_an_address(host)
        is_given_the_time_that_its_imports_take(host)
        stays_down_with_a_wrong_file(host)
        is_upgraded(host)
        goes_on_when_the_new_version_does_not_start(host)
        is_removed(host)


def starts_and_serves(host: Host) -> None:
    host.systemctl("start")
    assert host.property("ActiveState") == "active"
    host.wait_for_status("2 ports, 1 open, 0 in use, 1 absent")
    assert "simulated app" in host.asks_for_version()


def has_no_privileges(host: Host) -> None:
    pid = host.machine.real_pid(host.property("MainPID"))
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    assert "0" not in status["Uid"].split()
    assert int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    limits = Path(f"/proc/{pid}/limits").read_text()
    # A container's systemd may not raise the limit that the container has.
    most = min(65536, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    assert re.search(rf"^Max open files +{most} +{most} ", limits, re.MULTILINE)


def keeps_what_a_board_says(host: Host) -> None:
    log = host.machine.output_of("cat", "/var/log/esp-gateway/desk.log")
    assert "heartbeat" in log


def tells_everybody_its_status(host: Host) -> None:
    nobody = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    status = host.machine.output_of(*nobody, "/usr/local/bin/esp-gateway", "status", "--json")
    assert '"desk"' in status


def reloads(host: Host) -> None:
    pid = host.property("MainPID")
    host.write(CONFIG, CONFIGURATION + "  - {name: new, tcp: 4003, device: /dev/ttyUSB1}\n")
    host.systemctl("reload")
    host.wait_for_status("3 ports, 1 open, 0 in use, 2 absent")
    host.machine.wait_until(lambda: host.property("ActiveState") == "active", "the reload's end")
    assert host.property("MainPID") == pid


def refuses_to_reload_a_wrong_file(host: Host) -> None:
    pid = host.property("MainPID")
    right = host.machine.output_of("cat", CONFIG)
    host.write(CONFIG, "ports: none\n")
    reload = host.machine.run("systemctl", "reload", UNIT)
    assert reload.returncode != 0
    assert "failed" in reload.stderr
    assert f"{CONFIG}:1: invalid ports" in host.journal()
    assert host.property("ActiveState") == "active"
    host.write(CONFIG, right)
    host.systemctl("reload")
    assert host.property("MainPID") == pid


def tells_levels(host: Host) -> None:
    assert '{"event": "service_started"' in host.journal()
    warnings = host.journal("--priority=warning")
    assert "service_started" not in warnings
    assert '"device": "gone"' in warnings


def is_ended_and_started_again_when_stuck(host: Host) -> None:
    set_in_unit(host, f"WatchdogSec={SHORT_WATCHDOG_S}")
    host.systemctl("restart")
    os.kill(host.machine.real_pid(host.property("MainPID")), signal.SIGSTOP)
    host.machine.wait_until(lambda: host.property("NRestarts") != "0", "a restart")
    host.machine.wait_until(lambda: host.property("ActiveState") == "active", "the service")
    host.machine.wait_until(
        lambda: "Fatal Python error: Aborted" in host.journal(), "its traceback"
    )
    assert "simulated app" in host.asks_for_version()


def set_in_unit(host: Host, line: str) -> None:
    host.write(f"/run/systemd/system/{UNIT}.service.d/test.conf", f"[Service]\n{line}\n")
    host.machine.output_of("systemctl", "daemon-reload")


def waits_for_an_address(host: Host) -> None:
    away = "  - {name: away, tcp: 4003, host: 192.0.2.1, device: /dev/ttyUSB1}\n"
    host.write(CONFIG, CONFIGURATION + away)
    set_in_unit(host, f"TimeoutStartSec={SHORT_START_LIMIT_S}")
    host.systemctl("restart", "--no-block")
    host.wait_for_status("3 ports, 1 open, 0 in use, 2 absent, 1 not listening yet")
    assert "simulated app" in host.asks_for_version()
    # Longer than systemd waits for a start that nothing is heard of.
    time.sleep(SHORT_START_LIMIT_S + 1)
    assert host.property("ActiveState") == "activating"
    host.machine.output_of("ip", "address", "add", "192.0.2.1", "dev", "lo")
    host.machine.wait_until(lambda: host.property("ActiveState") == "active", "the service")
    assert host.property("NRestarts") == "0"


#: In the place of a module: takes longer to import than systemd waits for a start by itself.
SLOW_MODULE = f"""
import sys, time
time.sleep({SHORT_START_LIMIT_S + 3})
sys.path.remove("/opt/slow")
del sys.modules["yaml"]
import yaml
"""


def is_given_the_time_that_its_imports_take(host: Host) -> None:
    host.write(CONFIG, CONFIGURATION)
    host.write("/opt/slow/yaml.py", SLOW_MODULE)
    limit = f"TimeoutStartSec={SHORT_START_LIMIT_S}"
    set_in_unit(host, f"{limit}\nEnvironment=PYTHONPATH=/opt/slow")
    host.systemctl("restart")
    assert host.property("ActiveState") == "active"
    assert host.property("NRestarts") == "0"
    start, active = ("ExecMainStartTimestampMonotonic", "ActiveEnterTimestampMonotonic")
    took_us = int(host.property(active)) - int(host.property(start))
    assert took_us > SHORT_START_LIMIT_S * 1_000_000
    set_in_unit(host, limit)


def stays_down_with_a_wrong_file(host: Host) -> None:
    host.write(CONFIG, "ports: none\n")
    assert host.machine.run("systemctl", "restart", UNIT).returncode != 0
    assert host.property("ActiveState") == "failed"
    assert host.property("ExecMainStatus") == "2"
    assert f"{CONFIG}:1: invalid ports" in host.journal()


#: As Debian's package has it, but for the program.
BRLTTY = "[Service]\nExecStart=/bin/sleep 3600\n[Install]\nWantedBy=sysinit.target\n"


def is_upgraded(host: Host) -> None:
    host.write(CONFIG, CONFIGURATION)
    host.systemctl("start")
    pid = host.property("MainPID")
    host.write("/lib/systemd/system/brltty.service", BRLTTY)
    host.machine.output_of("systemctl", "enable", "--now", "brltty")
    assert "brltty is masked" in host.install("--mask-brltty")
    assert host.machine.property_of("brltty", "ActiveState") == "inactive"
    assert host.machine.property_of("brltty", "LoadState") == "masked"
    assert host.property("ActiveState") == "active"
    assert host.property("MainPID") != pid
    assert "simulated app" in host.asks_for_version()


def goes_on_when_the_new_version_does_not_start(host: Host) -> None:
    files = "pyproject.toml README.md LICENSE gateway packaging systemd config"
    copy = f"mkdir /root/new && cd /srv && cp -R {files} /root/new"
    host.machine.output_of("sh", "-c", copy)
    host.machine.output_of("sh", "-c", "echo 'raise SystemExit(7)' >> /root/new/gateway/service.py")
    failed = host.try_to_install("/root/new/systemd/install.sh")
    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert "the service does not start" in failed.stderr
    assert "the old version is in use again" in failed.stderr
    host.machine.wait_until(lambda: host.property("ActiveState") == "active", "the old version")
    assert "simulated app" in host.asks_for_version()


def is_removed(host: Host) -> None:
    host.install("--uninstall", "--purge")
    assert host.property("LoadState") == "not-found"
    left = host.machine.output_of(
        "sh", "-c", "ls -d /opt/esp-gateway /etc/esp-gateway /var/l*/private/esp-gateway || true"
    )
    assert left == ""
