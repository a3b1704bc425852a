from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from gateway.status_socket import StatusError, StatusServer, ask, default_path, find_path


async def test_whoever_connects_gets_the_snapshot_of_that_moment(tmp_path: Path) -> None:
    snapshots = iter(["first", "second" * 100_000])
    server = StatusServer(tmp_path / "new" / "status.sock", lambda: next(snapshots))
    await server.start()
    try:
        assert await asyncio.to_thread(ask, tmp_path / "new" / "status.sock") == "first"
        assert len(await asyncio.to_thread(ask, tmp_path / "new" / "status.sock")) == 600_000
    finally:
        server.stop()
    assert not (tmp_path / "new" / "status.sock").exists()


async def test_a_socket_that_a_killed_service_left_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "status.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    server = StatusServer(path, lambda: "here")
    await server.start()
    try:
        assert await asyncio.to_thread(ask, path) == "here"
    finally:
        server.stop()


async def test_the_socket_of_a_service_that_runs_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "status.sock"
    first, second = StatusServer(path, lambda: "first"), StatusServer(path, lambda: "second")
    await first.start()
    try:
        with pytest.raises(OSError, match="belongs to a service that runs"):
            await second.start()
        second.stop()
        assert await asyncio.to_thread(ask, path) == "first"
    finally:
        first.stop()


def test_where_no_service_runs_the_reason_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StatusError, match="no service runs here"):
        ask(tmp_path / "status.sock")
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(tmp_path / "left"))
    with pytest.raises(StatusError, match="no service runs here"):
        ask(tmp_path / "left")
    with pytest.raises(StatusError, match="too long"):
        ask(tmp_path / ("long" * 50))


def test_an_answer_without_an_end_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.status_socket._LONGEST_ANSWER_BYTES", 10)
    path = tmp_path / "status.sock"

    async def serve_and_ask() -> None:
        server = StatusServer(path, lambda: "x" * 100)
        await server.start()
        try:
            with pytest.raises(StatusError, match="no end"):
                await asyncio.to_thread(ask, path)
        finally:
            server.stop()

    asyncio.run(serve_and_ask())


def test_the_socket_is_where_systemd_or_the_user_has_its_runtime_files() -> None:
    systemd = {"RUNTIME_DIRECTORY": "/run/esp-gateway", "XDG_RUNTIME_DIR": "/run/user/7"}
    assert default_path(systemd) == Path("/run/esp-gateway/status.sock")
    assert default_path({"XDG_RUNTIME_DIR": "/run/user/7"}) == Path(
        "/run/user/7/esp-gateway/status.sock"
    )
    assert default_path({}).name == "status.sock"


def test_who_asks_finds_the_system_s_service_before_the_user_s(tmp_path: Path) -> None:
    own = tmp_path / "esp-gateway" / "status.sock"
    environment = {"XDG_RUNTIME_DIR": str(tmp_path)}
    assert find_path(environment, system=tmp_path / "none") == own
    system = tmp_path / "system.sock"
    system.touch()
    assert find_path(environment, system=system) == system
