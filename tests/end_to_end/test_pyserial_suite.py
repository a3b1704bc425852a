"""pyserial's own test suite on a tty, and on the same tty behind the gateway.

It asks for a plug that connects TX with RX, RTS with CTS and DTR with DSR. The suite comes from
pyserial's source package: `make` puts it where PYSERIAL_SUITE says.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.played_ttys import PlayedTty
from tests.support.processes import Service, free_tcp_port, run_tool
from tests.support.shim import Shim, build_shim

#: Tests in pyserial 3.5. Fewer would mean that a module could not be imported.
N_TESTS = 61

_RUNNER = Path(__file__).parent.parent / "support" / "unittest_outcomes.py"

#: For one module; the longest takes 25 s.
_LIMIT_S = 200.0

#: The suite asserts on wall time (a non-blocking read right after a write, a time-out of 1.0 to
#: 2.1 s), which a busy machine breaks: a test that fails is run again alone.
_RUNS = 4

#: A pty has no baud rate: 1 KiB at 300 baud is gone before the suite cancels the write.
_PTY_IS_FAST = {"test_cancel.TestCancelWrite.test_cancel_once"}

#: Tests that may fail on each URL, and why. All others pass.
MAY_FAIL: dict[str, set[str]] = {
    "local": _PTY_IS_FAST
    | {
        # It allows 0.9 to 2.1 s, and can't be run again: its own XOFF has stopped the tty.
        "test.Test_MoreTimeouts.test_WriteTimeout",
    },
    "gateway": _PTY_IS_FAST
    | {
        # The 2.8 KB that the board does not take wait in the gateway and in the sockets; a write
        # returns as soon as they are there.
        "test.Test_MoreTimeouts.test_WriteTimeout",
    },
    "rfc2217": {
        # pyserial's client: "write_timeout is currently not supported".
        "test.Test_MoreTimeouts.test_WriteTimeout",
        # It has no cancel_read() and no cancel_write().
        "test_cancel.TestCancelRead.test_cancel_once",
        "test_cancel.TestCancelWrite.test_cancel_once",
        # A read with timeout=0 right after a write: the echo is still on its way, byte by byte
        # through the client's thread.
        "test.Test4_Nonblocking.test2_Loopback",
        "test.Test4_Nonblocking.test2_LoopbackTimeout",
    },
}


def suite_folder() -> Path:
    folder = os.environ.get("PYSERIAL_SUITE", "")
    if not Path(folder).is_dir() or not folder:
        pytest.skip(
            "PYSERIAL_SUITE names no folder (`make test` fetches pyserial's source package)"
        )
    return Path(folder)


def outcomes(module: str, url: str, env: Mapping[str, str], *ids: str) -> dict[str, str]:
    done = run_tool(
        [sys.executable, "-W", "ignore", _RUNNER, module, url, *ids],
        timeout_s=_LIMIT_S,
        env={**env, "PYTHONPATH": str(suite_folder())},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def is_bad(outcome: str) -> bool:
    return outcome.startswith(("failed", "error"))


def check_suite(kind: str, url: str, env: Mapping[str, str]) -> None:
    found: dict[str, str] = {}
    for path in sorted(suite_folder().glob("test*.py")):
        found |= outcomes(path.stem, url, env)
    for _ in range(_RUNS - 1):
        for name in [name for name in found if is_bad(found[name])]:
            if name not in MAY_FAIL[kind]:
                found |= outcomes(name.partition(".")[0], url, env, name)
    assert len(found) == N_TESTS
    bad = {name: outcome for name, outcome in found.items() if is_bad(outcome)}
    assert not {name: bad[name] for name in bad if name not in MAY_FAIL[kind]}
    # At least these work: an outcome "skipped" for all of them would pass the check above.
    assert sum(outcome == "passed" for outcome in found.values()) >= N_TESTS - 10


@pytest.fixture
def plugged(tmp_path: Path) -> Shim:
    shim = build_shim(tmp_path)
    shim.plug_loopback()
    return shim


def test_pyserials_suite_on_the_tty_itself(plugged: Shim) -> None:
    suite_folder()
    with PlayedTty() as board:
        check_suite("local", board.tty_path, plugged.env())


@pytest.mark.parametrize("scheme", ["gateway", "rfc2217"])
def test_pyserials_suite_behind_the_gateway(scheme: str, plugged: Shim, tmp_path: Path) -> None:
    suite_folder()
    tcp_port = free_tcp_port()
    config = tmp_path / "gateway.yaml"
    with PlayedTty() as board:
        # No ESP: DTR and RTS reach the plug as the suite sets them.
        config.write_text(
            f"ports: [{{name: desk, tcp: {tcp_port}, device: {board.tty_path}, reset: none}}]\n"
        )
        with Service(config, env=plugged.env()) as service:
            service.wait_for_line("device_opened")
            check_suite(scheme, f"{scheme}://127.0.0.1:{tcp_port}", {})
