"""The status: its table, and its socket, which no other user can interfere with."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway import status as module
from gateway.port_document import ClientState, PortState, service_json
from gateway.status import (
    StatusError,
    StatusServer,
    ask,
    checked_folder,
    default_path,
    find_path,
    parse,
    to_table,
)
from tests.support import loops
from tests.support.documents import CLIENT, DESK
from tests.support.pty_board import LoopClock, turns, until

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user as well")

NOBODY = 65534


@asynccontextmanager
async def serving_status(path: Path, snapshot: str) -> AsyncIterator[StatusServer]:
    server = StatusServer(path, lambda: snapshot)
    await server.start()
    try:
        yield server
    finally:
        server.stop()
        await turns(3)


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder as /tmp is: every user may make files in it."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


async def test_a_client_gets_the_snapshot_of_that_moment(tmp_path: Path) -> None:
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
        with pytest.raises(StatusError, match="belongs to a running service"):
            await second.start()
        second.stop()
        assert await asyncio.to_thread(ask, path) == "first"
    finally:
        first.stop()


# --- clients


async def test_clients_that_do_not_read_make_room_for_others_and_end_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_CLIENTS", 3)
    path = tmp_path / "status.sock"
    with LoopClock() as clock, ExitStack() as held:
        async with serving_status(path, "x" * 4_000_000):
            idle = []
            for _ in range(5):
                client = held.enter_context(socket.socket(socket.AF_UNIX))
                client.connect(str(path))
                client.setblocking(False)
                idle.append(client)
                await turns(10)

            def ended() -> list[bool]:
                return [has_ended(client) for client in idle]

            await until(lambda: ended() == [True, True, False, False, False])
            await clock.advance(5.1)
            await until(lambda: all(ended()))


def has_ended(client: socket.socket) -> bool:
    """Whether the server has closed; what has come is not read."""
    try:
        client.send(b"x", socket.MSG_NOSIGNAL)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return False


async def test_a_shortage_of_descriptors_is_logged_once_and_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "status.sock"
    failures = [OSError(24, "Too many open files")] * 3
    real = socket.socket.accept

    def accept(listening: socket.socket) -> object:
        if failures:
            raise failures.pop()
        return real(listening)

    monkeypatch.setattr(socket.socket, "accept", accept)
    with capture_logs() as logs, LoopClock() as clock:
        async with serving_status(path, "here"):
            asking = asyncio.create_task(asyncio.to_thread(ask, path))
            while not asking.done():
                clock.jump(0.5)
                await turns(5)
            assert await asking == "here"
    assert [(each["event"], each["server"]) for each in logs] == [("accept_failed", "status")]


# --- other users


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
async def test_every_user_may_connect_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "new" / "status.sock"
    before = os.umask(umask)
    try:
        async with serving_status(path, "here"):
            assert stat.filemode(path.lstat().st_mode) == "srw-rw-rw-"
            assert not path.parent.stat().st_mode & 0o022
            assert os.umask(umask) == umask  # nothing else is made with another one
    finally:
        os.umask(before)


@needs_root
async def test_another_user_gets_the_status(shared_folder: Path) -> None:
    async with serving_status(shared_folder / "new" / "status.sock", "for all") as server:
        program = (
            "use IO::Socket::UNIX; my $s = IO::Socket::UNIX->new($ARGV[0]) or die $!; print <$s>;"
        )
        asked = await asyncio.to_thread(
            subprocess.run,
            ["perl", "-e", program, str(server.path)],
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            capture_output=True,
            text=True,
            check=True,
        )
        assert asked.stdout == "for all\n"


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757])
async def test_a_folder_that_others_can_change_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(mode)
    for path in (folder / "status.sock", folder / "new" / "status.sock"):
        with pytest.raises(StatusError, match=f"chmod go-w {folder}"):
            await StatusServer(path, str).start()
    assert list(folder.iterdir()) == [] or list(folder.iterdir()) == [folder / "new"]


async def test_a_folder_like_tmp_is_fine(shared_folder: Path) -> None:
    async with serving_status(shared_folder / "status.sock", "here") as server:
        assert await asyncio.to_thread(ask, server.path) == "here"
    async with serving_status(shared_folder / "new" / "status.sock", "here") as server:
        assert await asyncio.to_thread(ask, server.path) == "here"


async def test_links_of_our_own_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "one").symlink_to("two/../two")
    (tmp_path / "two").symlink_to(tmp_path / "real")
    assert checked_folder(tmp_path / "one") == tmp_path / "real"
    async with serving_status(tmp_path / "one" / "status.sock", "here"):
        assert await asyncio.to_thread(ask, tmp_path / "real" / "status.sock") == "here"
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(StatusError, match="too many symbolic links"):
        checked_folder(tmp_path / "loop")


async def test_a_file_in_the_place_of_the_folder_or_the_socket_is_left_alone(
    tmp_path: Path,
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    file.chmod(0o600)
    (tmp_path / "link").symlink_to(file)
    with pytest.raises(StatusError, match="is not a directory"):
        await StatusServer(file / "status.sock", str).start()
    for path in (file, tmp_path / "link"):
        with pytest.raises(OSError, match="in use"):
            await StatusServer(path, str).start()
    assert file.read_text() == "mine"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert (tmp_path / "link").is_symlink()


@needs_root
async def test_what_belongs_to_another_user_is_refused_by_both_ends(shared_folder: Path) -> None:
    folder = shared_folder / "esp-gateway"
    folder.mkdir()
    os.chown(folder, NOBODY, NOBODY)
    link = shared_folder / "link"
    link.symlink_to("/root")
    os.chown(link, NOBODY, NOBODY, follow_symlinks=False)
    for path in (folder, link):
        with pytest.raises(StatusError, match=f"{path} belongs to another user"):
            await StatusServer(path / "status.sock", str).start()
    with pytest.raises(StatusError, match=f"{folder} belongs to another user"):
        find_path({"XDG_RUNTIME_DIR": str(shared_folder)}, system=shared_folder / "none")


#: Puts a link in the place of the socket again and again, and now and then one in the place of
#: the folder.
RACE = """
my ($folder, $victim) = @ARGV;
while (1) {
    mkdir $folder, 0777;
    for (1 .. 1000) {
        symlink $victim, "$folder/link";
        rename "$folder/link", "$folder/status.sock";
        unlink "$folder/status.sock";
    }
    rmdir $folder;
    symlink "/", $folder;
    unlink $folder;
}
"""


@needs_root
def test_a_user_who_races_for_the_folder_gets_nothing_changed(shared_folder: Path) -> None:
    folder, victim = shared_folder / "esp-gateway-0", shared_folder / "victim"
    victim.write_text("mine")
    victim.chmod(0o600)
    refused = 0

    async def serve_in_vain() -> None:
        nonlocal refused
        server = StatusServer(folder / "status.sock", str)
        try:
            await server.start()
        except (StatusError, OSError):
            refused += 1
        server.stop()

    racer = subprocess.Popen(
        ["perl", "-e", RACE, folder, victim], user=NOBODY, group=NOBODY, extra_groups=[]
    )
    try:
        while not os.path.lexists(folder):
            time.sleep(0.001)
        for _ in range(1000):
            loops.run(serve_in_vain())
            assert stat.S_IMODE(victim.stat().st_mode) == 0o600
            with suppress(FileNotFoundError):
                if folder.lstat().st_uid == 0:
                    folder.rmdir()  # ours, and nothing is left in it: the next one races again
    finally:
        racer.terminate()
        racer.wait()
    assert refused
    assert not Path("/status.sock").exists()
    assert victim.read_text() == "mine"


# --- asking


def test_an_answer_without_an_end_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.status._MAX_ANSWER_BYTES", 10)
    path = tmp_path / "status.sock"

    async def serve_and_ask() -> None:
        server = StatusServer(path, lambda: "x" * 100)
        await server.start()
        try:
            with pytest.raises(StatusError, match="exceeds 10 bytes"):
                await asyncio.to_thread(ask, path)
        finally:
            server.stop()

    loops.run(serve_and_ask())


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


# --- the table


def test_a_service_s_line_is_parsed() -> None:
    assert parse(service_json("1.0", [DESK], {"a board": "no tty"})) == (
        [DESK],
        {"a board": "no tty"},
    )


@pytest.mark.parametrize(
    "line",
    [
        *("", "{}", "[]", "null", '{"not_served": [{}], "ports": []}'),
        '{"not_served": [], "ports": [{}]}',
        json.dumps({"not_served": [], "ports": [{**DESK.to_json(), "state": "odd"}]}),
    ],
)
def test_anything_else_is_an_error_of_one_line(line: str) -> None:
    with pytest.raises(StatusError, match="not the status of an esp-gateway") as error:
        parse(line)
    assert "\n" not in str(error.value)


def test_the_table_has_a_line_a_port_and_aligned_columns() -> None:
    now = datetime.now(UTC)
    suspended = replace(CLIENT, address="10.0.0.6:4", state=ClientState.SUSPENDED)
    desk = replace(DESK, clients=(replace(CLIENT, connected_at=now.isoformat()), suspended))
    shelf = replace(
        DESK,
        name="shelf",
        state=PortState.BROKEN,
        reason="not a serial port",
        tcp_port=None,
        settings=None,
        lines=None,
        clients=(),
        received_bytes=5 << 30,
    )
    table = to_table([desk, shelf, replace(DESK, connect="lab:7001")])
    head, first, second, third = table.splitlines()
    assert first.index("127.0.0.1") == head.index("ADDRESS") == second.index("not bound")
    assert "10.0.0.5:51234 < 10.0.0.6:4" in first
    assert now.astimezone().strftime("  %H:%M:%S  ") in first
    assert "  115200 8N1  DTR on, RTS off  " in first
    assert first.split()[-7:] == ["1.5", "KiB", "12", "B", "2.0", "KiB", "321"]
    assert "broken: not a serial port" in second
    assert "5.0 GiB" in second
    assert "-> lab:7001" in third
    assert re.search(r"  2026-03-01 \d\d:03:22  ", third)


def test_no_ports_are_a_head_alone() -> None:
    assert len(to_table([]).splitlines()) == 1
