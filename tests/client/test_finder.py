"""That pyserial's programs find the handler, and what that costs the others."""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
from esp_serial_gateway_client import NAME, Finder, install

from tests.support.gateway_client import ROOT, client_env
from tests.support.processes import run_tool

LIMIT_S = 60.0

#: Where programs have the client's modules.
CLIENT = "esp_serial_gateway_client.client"


def run_python(code: str, *options: str, env: dict[str, str], folder: Path | None = None) -> str:
    done = run_tool([sys.executable, *options, "-c", code], LIMIT_S, env, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout.strip()


def test_a_program_that_knows_only_pyserial_gets_our_port(tmp_path: Path) -> None:
    code = (
        "import serial; port = serial.serial_for_url('gateway://h:1', do_not_open=True);"
        "print(type(port).__module__, port.port, port.name)"
    )
    said = run_python(code, env=client_env(tmp_path))
    assert said == f"{CLIENT}.protocol_gateway gateway://h:1 rfc2217://h:1"


def test_other_modules_are_none_of_its_business(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", [PathFinder])
    install()
    install()
    finders: list[object] = list(sys.meta_path)
    assert finders == [PathFinder, Finder]
    for name in ("serial.urlhandler.protocol_other", "gateway"):
        assert Finder.find_spec(name) is None


def test_the_start_file_keeps_quiet_when_the_package_has_gone(tmp_path: Path) -> None:
    # -I: no PYTHONPATH; -S: no site-packages, where the package is.
    code = f"import site; site.addsitedir({str(ROOT / 'packaging')!r}); print('fine')"
    assert run_python(code, "-I", "-S", env={}) == "fine"


def test_an_interpreter_that_needs_no_port_imports_the_finder_only(tmp_path: Path) -> None:
    before = "import sys; print(*sorted(sys.modules))"
    with_finder = set(run_python(before, env=client_env(tmp_path)).split())
    assert {name for name in with_finder if "gateway" in name} == {"esp_serial_gateway_client"}
    assert not with_finder & {
        "serial",
        "structlog",
        "asyncio",
        "typing",
        "pathlib",
        "importlib.util",
    }


def test_a_program_that_opens_a_port_imports_nothing_of_the_service(tmp_path: Path) -> None:
    code = (
        "import sys, serial; serial.serial_for_url('gateway://h:1', do_not_open=True);"
        "print(*sorted(sys.modules))"
    )
    modules = set(run_python(code, env=client_env(tmp_path)).split())
    assert f"{CLIENT}.connection" in modules
    assert not modules & {"structlog", "telnetlib3", "asyncio", "ssl", "yaml", "gateway"}


@pytest.mark.parametrize("kind", ["gateway.py", "gateway/__init__.py"])
def test_a_program_keeps_a_gateway_of_its_own(tmp_path: Path, kind: str) -> None:
    own = tmp_path / "own" / kind
    own.parent.mkdir(parents=True)
    own.write_text("print('mine is run')\n")
    env = client_env(tmp_path)
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "own"), env["PYTHONPATH"]])
    assert run_python("print('started')", env=env, folder=tmp_path) == "started"
    opened = (
        "import serial; port = serial.serial_for_url('gateway://h:1', do_not_open=True);"
        "print(type(port).__module__)"
    )
    handler = f"{CLIENT}.protocol_gateway"
    assert run_python(opened, env=env, folder=tmp_path) == handler
    both = run_python(
        f"import gateway; print(gateway.__file__); {opened}", env=env, folder=tmp_path
    )
    assert both.splitlines() == ["mine is run", str(own), handler]
    both = run_python(
        f"{opened}; import gateway; print(gateway.__file__)", env=env, folder=tmp_path
    )
    assert both.splitlines() == [handler, "mine is run", str(own)]


def test_the_name_is_the_one_that_pyserial_asks_for() -> None:
    serial = pytest.importorskip("serial")
    package = serial.protocol_handler_packages[0]
    assert f"{package}.protocol_gateway" == NAME
