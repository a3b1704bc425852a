"""That pyserial's programs find the handler, and what that costs the others."""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

from gateway.client.finder import NAME, Finder, install
from tests.support.gateway_client import ROOT, client_env
from tests.support.processes import run_tool

LIMIT_S = 60.0


def run_python(code: str, *options: str, env: dict[str, str]) -> str:
    done = run_tool([sys.executable, *options, "-c", code], LIMIT_S, env)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout.strip()


def test_a_program_that_knows_only_pyserial_gets_our_port(tmp_path: Path) -> None:
    code = (
        "import serial; port = serial.serial_for_url('gateway://h:1', do_not_open=True);"
        "print(type(port).__module__, port.port, port.name)"
    )
    said = run_python(code, env=client_env(tmp_path))
    assert said == f"{NAME} gateway://h:1 rfc2217://h:1"


def test_other_modules_are_none_of_its_business(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", [PathFinder])
    install()
    install()
    finders: list[object] = list(sys.meta_path)
    assert finders == [PathFinder, Finder]
    for name in ("serial.urlhandler.protocol_other", "gateway"):
        assert Finder.find_spec(name) is None  # type: ignore[no-untyped-call]


def test_the_start_file_keeps_quiet_when_the_package_has_gone(tmp_path: Path) -> None:
    # -I: no PYTHONPATH; -S: no site-packages, where the package is.
    code = f"import site; site.addsitedir({str(ROOT / 'packaging')!r}); print('fine')"
    assert run_python(code, "-I", "-S", env={}) == "fine"


def test_an_interpreter_that_needs_no_port_imports_the_finder_only(tmp_path: Path) -> None:
    before = "import sys; print(*sorted(sys.modules))"
    with_finder = set(run_python(before, env=client_env(tmp_path)).split())
    assert "gateway.client.finder" in with_finder
    ours = {name for name in with_finder if name.partition(".")[0] == "gateway"}
    assert ours == {"gateway", "gateway.client", "gateway.client.finder"}
    assert not with_finder & {"serial", "structlog", "asyncio"}


def test_a_program_that_opens_a_port_imports_nothing_of_the_service(tmp_path: Path) -> None:
    code = (
        "import sys, serial; serial.serial_for_url('gateway://h:1', do_not_open=True);"
        "print(*sorted(sys.modules))"
    )
    modules = set(run_python(code, env=client_env(tmp_path)).split())
    assert "gateway.client.connection" in modules
    assert not modules & {"structlog", "telnetlib3", "asyncio", "ssl", "yaml", "gateway.config"}


def test_the_name_is_the_one_that_pyserial_asks_for() -> None:
    serial = pytest.importorskip("serial")
    package = serial.protocol_handler_packages[0]
    assert f"{package}.protocol_gateway" == NAME
