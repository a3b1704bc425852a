"""The plugin that finds what takes an order for granted does find it."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.processes import run_tool

ROOT = Path(__file__).parents[2]

ORDER_TAKEN_FOR_GRANTED = """
import asyncio, socket

async def order():
    loop, seen = asyncio.get_running_loop(), []
    pairs = [socket.socketpair() for _ in range(3)]
    for number, (_, there) in enumerate(pairs):
        loop.add_reader(there, seen.append, number)
    for here, _ in pairs:
        here.send(b"x")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for here, there in pairs:
        loop.remove_reader(there)
        here.close()
        there.close()
    return seen[:3]

def test_order():
    for _ in range(20):
        assert asyncio.run(order()) == [0, 1, 2]
"""


def test_what_takes_an_order_for_granted_fails_with_it_only(tmp_path: Path) -> None:
    path = tmp_path / "test_order.py"
    path.write_text(ORDER_TAKEN_FOR_GRANTED)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--rootdir={tmp_path}"]
    env = {"PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": "", "JITTER_SEED": "1"}
    assert run_tool([*command, str(path)], 120, env, cwd=tmp_path).returncode == 0
    jittery = run_tool([*command, "-p", "tests.tools.jitter", str(path)], 120, env, cwd=tmp_path)
    assert jittery.returncode == 1
    assert "JITTER_SEED=1" in jittery.stdout
    assert "assert [" in jittery.stdout
