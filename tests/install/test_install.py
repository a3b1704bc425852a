"""systemd/install.sh into a folder that stands for /, with stand-ins for what would touch this
machine; once with a stand-in for Python too, which takes no time, once with the real one.
"""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.booted_machine import debian_python
from tests.support.processes import BackgroundProcess, run_tool

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "systemd" / "install.sh"

STUB_LIMIT_S = 60.0
#: pip fetches a build tool and the dependencies.
REAL_LIMIT_S = 600.0

#: Notes how it was called; a service that is named in $ACTIVE is active.
RECORDER = """#!/bin/sh
echo "${0##*/} $*" >> "$RECORD"
case "$*" in
  *is-active*) case " $ACTIVE " in *" ${3%.service} "*) ;; *) exit 3 ;; esac ;;
  *is-enabled*) case " $ENABLED " in *" ${3%.service} "*) ;; *) exit 1 ;; esac ;;
  try-restart*) exit "${RESTART_CODE:-0}" ;;
  daemon-reload*) exit "${RELOAD_CODE:-0}" ;;
esac
"""

#: A Python that makes environments whose pip installs a gateway that does nothing.
PYTHON = """#!/bin/sh
case "$1 $2 $3" in
  "-c import sys"*) exit "${TOO_OLD:-0}" ;;
  "-m venv "*)
    mkdir -p "$3/bin" "$3/lib/python3.11/site-packages" && cp "$0" "$3/bin/python"
    touch "$3/pyvenv.cfg" && ln -s lib "$3/lib64" ;;
  "-m pip install")
    [ -z "$PIP_FAILS" ] || exit 1
    echo "pip ${6##*[}" >> "$RECORD"
    printf '#!/bin/sh\\n[ "$1" != check ] || exit "${CHECK_CODE:-0}"\\n' > "${0%/*}/esp-gateway"
    chmod +x "${0%/*}/esp-gateway" ;;
  --version*) echo "Python 3.9.2" ;;
esac
"""


class Machine:
    """A folder that stands for /, and what its systemd and udev were asked."""

    def __init__(self, folder: Path, python: Path | None = None) -> None:
        self.root = folder / "root"
        self.bin = folder / "bin"
        self.record = folder / "record"
        self.bin.mkdir()
        self.record.touch()
        for name in ("systemctl", "udevadm"):
            self._program(name, RECORDER)
        # The group is the machine's; a container may not have it.
        self._program("getent", "#!/bin/sh\n")
        self.python = python or self._program("python", PYTHON)

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the script; what systemd and udev were asked before is forgotten."""
        self.record.write_text("")
        limit_s = STUB_LIMIT_S if self.python.parent == self.bin else REAL_LIMIT_S
        return run_tool([SCRIPT, *arguments], limit_s, self._variables(environment))

    def _variables(self, environment: Mapping[str, str]) -> dict[str, str]:
        return {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "DESTDIR": str(self.root),
            "PYTHON": str(self.python),
            "RECORD": str(self.record),
            **environment,
        }

    def install(self, *arguments: str, **environment: str) -> str:
        """Run the script, which must succeed; what it says."""
        done = self.run(*arguments, **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def install_at_a_terminal(self, answer: str, **environment: str) -> str:
        """Run the script as a person does, who gives an answer to its question."""
        self.record.write_text("")
        master, slave = pty.openpty()
        try:
            os.write(master, f"{answer}\n".encode())
            done = subprocess.run(
                [SCRIPT],
                env={**os.environ, **self._variables(environment)},
                stdin=slave,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=STUB_LIMIT_S,
                check=True,
            )
        finally:
            os.close(master)
            os.close(slave)
        return done.stdout

    def asked(self) -> list[str]:
        """What systemd and udev were asked by the last run."""
        return self.record.read_text().splitlines()

    def files(self) -> set[str]:
        """All that is there but the virtual environments and folders."""
        return {
            str(path.relative_to(self.root))
            for path in self.root.rglob("*")
            if not path.is_dir() or path.is_symlink()
            if not any(part.startswith("venv-") for part in path.parts)
        }

    def venvs(self, prefix: str = "opt/esp-gateway") -> set[str]:
        return {path.name for path in (self.root / prefix).glob("venv-*")}

    def path(self, inside: str) -> Path:
        return self.root / inside

    def _program(self, name: str, text: str) -> Path:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)
        return path


INSTALLED = {
    "etc/esp-gateway/gateway.schema.json",
    "etc/esp-gateway/gateway.yaml",
    "etc/modules-load.d/esp-gateway.conf",
    "etc/systemd/system/esp-gateway.service",
    "etc/udev/rules.d/99-esp-gateway.rules",
    "opt/esp-gateway/bin",
    "opt/esp-gateway/current",
    "opt/esp-gateway/lib",
    "opt/esp-gateway/lib64",
    "opt/esp-gateway/pyvenv.cfg",
    "usr/local/bin/esp-gateway",
}


#: Files of an installation and their sources in the checkout.
SOURCES = {
    "etc/esp-gateway/gateway.yaml": "config/gateway.yaml",
    "etc/modules-load.d/esp-gateway.conf": "systemd/esp-gateway.conf",
    "etc/systemd/system/esp-gateway.service": "systemd/esp-gateway.service",
    "etc/udev/rules.d/99-esp-gateway.rules": "systemd/99-esp-gateway.rules",
}
UNIT = "etc/systemd/system/esp-gateway.service"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def installed(machine: Machine) -> Machine:
    machine.install()
    return machine


def test_a_first_install_puts_everything_in_place_and_says_what_is_next(machine: Machine) -> None:
    said = machine.install()
    assert machine.files() == INSTALLED
    for inside, source in SOURCES.items():
        assert machine.path(inside).read_text() == (ROOT / source).read_text()
        assert machine.path(inside).stat().st_mode & 0o777 == 0o644
    assert str(machine.path("usr/local/bin/esp-gateway").readlink()) == (
        "/opt/esp-gateway/bin/esp-gateway"
    )
    asked = machine.asked()
    assert asked.index("systemctl daemon-reload") < asked.index(
        "systemctl enable --quiet esp-gateway.service"
    )
    assert "udevadm control --reload" in asked
    # The example's devices are somebody else's: it is started when it has been edited.
    assert not [call for call in asked if "start esp-gateway" in call]
    assert "sudo systemctl start esp-gateway" in said
    assert "ModemManager" not in said
    assert "brltty" not in said


def test_an_upgrade_keeps_the_configuration_and_restarts_what_runs(installed: Machine) -> None:
    first = installed.venvs()
    config = installed.path("etc/esp-gateway/gateway.yaml")
    config.write_text("mine")
    installed.path(UNIT).write_text("of an older version")
    installed.install()
    assert config.read_text() == "mine"
    assert installed.files() == INSTALLED
    assert installed.path(UNIT).read_text() == (ROOT / SOURCES[UNIT]).read_text()
    asked = installed.asked()
    assert asked.index("systemctl daemon-reload") < asked.index(
        "systemctl try-restart esp-gateway.service"
    )
    # One environment, a new one, and the link leads to it.
    [venv] = installed.venvs()
    assert venv not in first
    assert installed.path("opt/esp-gateway/bin/esp-gateway").exists()
    installed.install("--no-restart")
    assert "systemctl try-restart esp-gateway.service" not in installed.asked()
    assert {venv} < installed.venvs()


def test_an_upgrade_keeps_what_was_installed_beside_the_old_version(installed: Machine) -> None:
    assert "pip web,mdns]" in installed.asked()
    packages = installed.path("opt/esp-gateway/lib/python3.11/site-packages")
    (packages / "esptool-5.0.2.dist-info").mkdir()
    installed.install()
    assert "pip web,mdns,flash]" in installed.asked()
    # Of an interpreter that is no longer there.
    packages = packages.parent.parent / "python3.9" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "uvloop-0.21.0.dist-info").mkdir()
    installed.install()
    assert "pip web,mdns,fast]" in installed.asked()


def test_an_upgrade_of_a_version_that_had_only_a_link_to_bin(machine: Machine) -> None:
    venv = machine.path("opt/esp-gateway/venv-old123")
    (venv / "lib/python3.11/site-packages/esptool-5.0.2.dist-info").mkdir(parents=True)
    (venv / "bin").mkdir()
    machine.path("opt/esp-gateway/bin").symlink_to("venv-old123/bin")
    assert machine.run(PIP_FAILS="yes").returncode != 0
    assert str(machine.path("opt/esp-gateway/bin").readlink()) == "venv-old123/bin"
    machine.install()
    assert "pip web,mdns,flash]" in machine.asked()
    assert machine.files() == INSTALLED
    assert str(machine.path("opt/esp-gateway/bin").readlink()) == "current/bin"
    assert not venv.exists()


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"PIP_FAILS": "yes"}, ""),
        ({"CHECK_CODE": "2"}, "has these mistakes for the new version"),
    ],
)
def test_an_upgrade_that_fails_leaves_the_old_version(
    installed: Machine, environment: dict[str, str], reason: str
) -> None:
    before = installed.venvs()
    failed = installed.run(**environment)
    assert failed.returncode == 1
    assert reason in failed.stderr
    assert installed.venvs() == before
    assert installed.path("opt/esp-gateway/bin/esp-gateway").exists()
    assert [call for call in installed.asked() if not call.startswith("pip")] == []
    installed.install()
    assert len(installed.venvs()) == 1


def test_a_new_version_that_does_not_start_is_replaced_by_the_old_one(installed: Machine) -> None:
    before = installed.venvs()
    installed.path(UNIT).write_text("of the older version")
    installed.path("etc/udev/rules.d/99-esp-gateway.rules").unlink()
    failed = installed.run(RESTART_CODE="1", ACTIVE="esp-gateway")
    assert failed.returncode == 1
    assert "does not start; see: journalctl" in failed.stderr
    assert "the old version is in use again" in failed.stderr
    assert installed.path(UNIT).read_text() == "of the older version"
    assert installed.files() == INSTALLED - {"etc/udev/rules.d/99-esp-gateway.rules"}
    assert installed.venvs() == before
    assert {installed.path("opt/esp-gateway/current").readlink().name} == before
    asked = installed.asked()
    failed_at = asked.index("systemctl try-restart esp-gateway.service")
    assert asked[failed_at + 1 :] == [
        "systemctl daemon-reload",
        "systemctl restart esp-gateway.service",
    ]


def test_a_restart_that_takes_long_is_no_failure(installed: Machine) -> None:
    before = installed.venvs()
    assert "still starting" in installed.install(RESTART_CODE="124", ACTIVE="esp-gateway")
    assert installed.venvs().isdisjoint(before)


def test_a_first_installation_that_fails_leaves_nothing(machine: Machine) -> None:
    assert machine.run(RELOAD_CODE="1").returncode != 0
    assert machine.files() == set()
    assert machine.venvs() == set()


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "reason"),
    [
        (["--unistall"], {}, 2, ""),
        (["--purge"], {}, 1, ""),
        ([], {"TOO_OLD": "1"}, 1, "Python 3.9.2 is too old: Python 3.11 or newer is needed"),
        *(
            (["--prefix", prefix], {}, 1, "--prefix")
            for prefix in ("", "/", "opt", "/opt/my gateway", "/opt/../etc|x", "/opt/..")
        ),
    ],
)
def test_what_can_t_be_meant_is_rejected_before_anything_is_touched(
    machine: Machine, arguments: list[str], environment: dict[str, str], code: int, reason: str
) -> None:
    rejected = machine.run(*arguments, **environment)
    assert rejected.returncode == code
    assert reason in rejected.stderr
    assert not machine.root.exists()


def test_a_prefix_with_programs_of_others_is_rejected(machine: Machine) -> None:
    machine.path("srv/bin").mkdir(parents=True)
    rejected = machine.run("--prefix", "/srv")
    assert rejected.returncode == 1
    assert "/srv/bin exists and is not a link of this script" in rejected.stderr
    assert machine.venvs("srv") == set()


def test_a_prefix_is_in_the_unit_too(machine: Machine) -> None:
    machine.install("--prefix", "/srv/lab/gateway")
    unit = machine.path(UNIT).read_text()
    assert "ExecStart=/srv/lab/gateway/bin/esp-gateway run" in unit
    assert "/opt/" not in unit
    assert machine.path("srv/lab/gateway/bin/esp-gateway").exists()
    machine.install("--uninstall", "--prefix=/srv/lab/gateway")
    assert machine.files() == {"etc/esp-gateway/gateway.yaml"}


def test_modem_manager_is_warned_of(machine: Machine) -> None:
    said = machine.install(ACTIVE="ModemManager")
    assert "sudo systemctl disable --now ModemManager" in said
    assert "brltty" not in said


@pytest.mark.parametrize("state", ["ACTIVE", "ENABLED"])
def test_brltty_is_masked_only_if_that_is_asked_for(machine: Machine, state: str) -> None:
    brltty = {state: "brltty"}
    for arguments in ([], ["--keep-brltty"]):
        assert "sudo systemctl mask --now brltty" in machine.install(*arguments, **brltty)
        assert not [call for call in machine.asked() if "mask" in call]
    assert "systemctl unmask brltty" in machine.install("--mask-brltty", **brltty)
    assert "systemctl mask --now brltty.service" in machine.asked()
    machine.install("--mask-brltty")
    assert not [call for call in machine.asked() if "mask" in call]


@pytest.mark.parametrize(("answer", "is_masked"), [("y", True), ("n", False), ("", False)])
def test_a_person_is_asked_whether_brltty_may_be_masked(
    machine: Machine, answer: str, is_masked: bool
) -> None:
    said = machine.install_at_a_terminal(answer, ACTIVE="brltty")
    assert "mask brltty? Braille displays will not work" in said
    assert ("systemctl mask --now brltty.service" in machine.asked()) is is_masked


def test_uninstalling_leaves_the_configuration_and_files_of_others(installed: Machine) -> None:
    installed.path("opt/esp-gateway/notes.txt").touch()
    installed.path("usr/local/bin/esp-gateway").unlink()
    installed.path("usr/local/bin/esp-gateway").write_text("somebody's own")
    installed.install("--uninstall")
    assert installed.files() == {
        "etc/esp-gateway/gateway.yaml",
        "opt/esp-gateway/notes.txt",
        "usr/local/bin/esp-gateway",
    }
    assert installed.venvs() == set()
    asked = installed.asked()
    assert asked[0] == "systemctl disable --quiet --now esp-gateway.service"
    assert "systemctl daemon-reload" in asked
    installed.install("--uninstall")  # a second time


def test_purging_leaves_nothing(installed: Machine) -> None:
    for folder in ("var/lib", "var/log"):
        installed.path(f"{folder}/private/esp-gateway").mkdir(parents=True)
        installed.path(f"{folder}/esp-gateway").symlink_to("private/esp-gateway")
    installed.install("--uninstall", "--purge")
    assert installed.files() == set()
    assert not list(installed.root.rglob("esp-gateway"))


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize(
    "script", ["systemd/install.sh", ".ci/run", "tests/support/booted_machine.sh"]
)
def test_shellcheck_has_nothing_to_say(script: str) -> None:
    checked = run_tool(["shellcheck", ROOT / script], STUB_LIMIT_S)
    assert checked.stdout + checked.stderr == ""


def built_in_checkout() -> set[Path]:
    """What building leaves behind; pip does it where the source is."""
    return {*ROOT.glob("build"), *ROOT.glob("*.egg-info")}


def pip_installs(python: Path, *packages: str) -> None:
    done = run_tool([python, "-m", "pip", "install", "--quiet", *packages], REAL_LIMIT_S)
    assert done.returncode == 0, done.stdout + done.stderr


def output_of(*command: str | Path) -> str:
    done = run_tool(command, STUB_LIMIT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.mark.timeout(1500)
@pytest.mark.skipif(debian_python() is None, reason="/usr/bin/python3 is too old or has no venv")
def test_what_pip_installs_serves_a_board_and_keeps_its_tools_over_an_upgrade(
    tmp_path: Path,
) -> None:
    # The distribution's own Python, in which pip refuses to install anything.
    machine = Machine(tmp_path, Path(str(debian_python())))
    before = built_in_checkout()
    machine.install()
    assert built_in_checkout() == before
    prefix = machine.path("opt/esp-gateway")
    command, python = prefix / "bin/esp-gateway", prefix / "bin/python"
    checked = run_tool([command, "check", ROOT / "config" / "gateway.yaml"], STUB_LIMIT_S)
    assert "no errors" in checked.stdout, checked.stderr
    config = tmp_path / "gateway.yaml"
    config.write_text("ports: [{name: desk, tcp: 0, device: 'sim://esp32'}]\n")
    with BackgroundProcess([command, "run", "--config", config]) as service:
        service.wait_for_line("device_opened")
    # As the pages say it: into the service's environment.
    assert output_of(python, "-c", "import sys; print(sys.prefix)") == str(prefix)
    pip_installs(python, "esptool>=5,<6", "uvloop")
    has_both = "import esptool, uvloop; print(esptool.__version__.split('.')[0])"
    assert output_of(python, "-c", has_both) == "5"
    failed = machine.run(PIP_NO_INDEX="1")
    assert failed.returncode != 0
    assert output_of(python, "-c", has_both) == "5"
    first = machine.venvs()
    machine.install()
    assert machine.venvs().isdisjoint(first)
    assert output_of(python, "-c", has_both) == "5"
    # Its own Python, which the service starts esptool with, is the new environment's.
    [venv] = machine.venvs()
    assert output_of(prefix / venv / "bin/python", "-c", has_both) == "5"
    assert "esp-gateway" in output_of(command, "--version")
