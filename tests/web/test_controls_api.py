"""What can be done to a board over HTTP, and who is disturbed by it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.config.document import OnConnect, OnDisconnect, Sharing
from gateway.port import claim as claim_module
from gateway.port_document import PortState
from gateway.protocol.access_server import RawPipe
from gateway.protocol.reset import BOTH, IDLE, RESET, STRAP
from gateway.web import controls_api
from tests.support.http_lab import HttpClient, Lab, http_client, running
from tests.support.pty_board import PtyBoard, serving, until
from tests.support.tcp_client import GREETING, TcpClient, com_port

SET_CONTROL = 5
DTR_ON, DTR_OFF, RTS_ON, RTS_OFF = 8, 9, 11, 12
BYTES = {"Content-Type": "application/octet-stream"}


async def set_line(client: TcpClient, value: int) -> None:
    """Set a line as pyserial does: wait for the answer."""
    answer = com_port(SET_CONTROL + 100, bytes([value]))
    count = client.received.count(answer)
    await client.send(com_port(SET_CONTROL, bytes([value])))
    await client.receive(lambda: client.received.count(answer) > count)


@pytest.mark.parametrize(
    ("what", "lines"), [("reset", [RESET, IDLE]), ("bootloader", [RESET, STRAP, IDLE])]
)
async def test_a_board_that_nobody_uses_is_reset(what: str, lines: list[object], lab: Lab) -> None:
    before = len(lab.board.lines)
    answered = await lab.client.post(f"/api/v1/ports/desk/{what}", {})
    assert answered.status == 200
    assert answered.content["name"] == "desk"
    await lab.served.until_idle()
    assert lab.board.lines[before:] == lines


@pytest.mark.parametrize("what", ["reset", "bootloader"])
@pytest.mark.parametrize("force", [False, True])
async def test_a_reset_that_no_line_does_is_answered_with_the_reason(
    what: str, force: bool, tmp_path: Path
) -> None:
    with PtyBoard(tmp_path, usb_ids=(0x0483, 0x374B)) as board:
        async with serving(board) as served, http_client(running(served)) as client:
            with await TcpClient.connect(served.tcp_port) as user:
                await user.receive_wire(GREETING)
                before = len(board.lines)
                if not force:
                    user.close()
                    await served.until_idle()
                answered = await client.post(f"/api/v1/ports/desk/{what}", {"force": force})
                assert answered.status == 409
                assert answered.error.startswith("desk: no line starts the ")
                assert board.lines[before:] == []


async def test_no_content_is_needed_by_a_program(lab: Lab) -> None:
    assert (await lab.client.post("/api/v1/ports/desk/reset")).status == 200
    await lab.served.until_idle()


@pytest.mark.parametrize("what", ["reset", "bootloader", "disconnect"])
async def test_who_has_a_port_is_named_and_not_disturbed(what: str, lab: Lab) -> None:
    with await TcpClient.connect(lab.served.tcp_port) as user:
        await user.receive_wire(GREETING)
        before = len(lab.board.lines)
        answered = await lab.client.post(f"/api/v1/ports/desk/{what}", {"force": False})
        assert answered.status == 409
        assert answered.error.startswith(f"desk: in use by {user.name} since ")
        await lab.board.write(b"still there")
        await user.receive_data(b"still there")
        assert len(lab.board.lines) == before


@pytest.mark.parametrize("after", range(6))
async def test_a_forced_reset_never_mixes_with_a_client_s_own(after: int, tmp_path: Path) -> None:
    """A client enters the bootloader as esptool does; in the midst of it the board is reset."""
    steps = (DTR_OFF, RTS_ON, DTR_ON, RTS_OFF, DTR_OFF)
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served, http_client(running(served)) as client:
            with await TcpClient.connect(served.tcp_port) as user:
                await user.receive_wire(GREETING)
                for step in steps[:after]:
                    await set_line(user, step)
                before = len(board.lines)
                answered = await client.post("/api/v1/ports/desk/reset", {"force": True})
                assert answered.status == 200
                assert answered.content["lines"] == {"dtr": False, "rts": False}
                # The reset is whole, whatever state it has begun in.
                resets = board.lines[max(before - 1, 0) :]
                assert resets[-2:] == [RESET, IDLE]
                for step in steps[after:]:
                    await set_line(user, step)
                await user.send(b"on")
                board.start_reading()
                await until(lambda: board.received == b"on")
            await served.until_idle()
            assert board.lines[-1] == IDLE


async def test_a_reset_waits_for_what_a_client_has_asked_for(lab: Lab) -> None:
    with await TcpClient.connect(lab.served.tcp_port) as user:
        await user.receive_wire(GREETING)
        before = len(lab.board.lines)
        lab.board.answers.clear()  # the line is being set, and takes its time
        await user.send(com_port(SET_CONTROL, bytes([RTS_ON])))
        await until(lambda: lab.served.port.status.lines == RESET)
        asked = asyncio.create_task(
            lab.client.post("/api/v1/ports/desk/bootloader", {"force": True})
        )
        await asyncio.sleep(0.05)
        lab.board.answers.set()
        assert (await asked).status == 200
        assert lab.board.lines[before:] == [RESET, STRAP, IDLE]
        await user.receive_wire(com_port(SET_CONTROL + 100, bytes([RTS_ON])))


async def test_a_client_that_comes_during_a_reset_waits_for_its_end(board: PtyBoard) -> None:
    # Where clients take over, one waits as long as it takes; where they don't, half a second.
    async with (
        serving(board, sharing=Sharing.TAKEOVER) as served,
        http_client(running(served)) as client,
    ):
        before = len(board.lines)
        board.answers.clear()
        asked = asyncio.create_task(client.post("/api/v1/ports/desk/reset", {}))
        await until(lambda: served.port.state is PortState.IN_USE)
        with await TcpClient.connect(served.tcp_port) as user:
            await until(lambda: served.sessions)
            board.answers.set()
            assert (await asked).status == 200
            await user.receive_wire(GREETING)
            await set_line(user, DTR_ON)
            await set_line(user, RTS_ON)
            await until(lambda: board.lines[-1] == BOTH)
            assert board.lines[before : before + 2] == [RESET, IDLE]


async def test_what_on_disconnect_asks_for_is_not_done_behind_what_was_asked_for(
    board: PtyBoard,
) -> None:
    async with (
        serving(
            board,
            converse=RawPipe,
            on_connect=OnConnect.NOTHING,
            on_disconnect=OnDisconnect.RESET,
        ) as served,
        http_client(running(served)) as client,
    ):
        before = len(board.lines)
        assert (await client.post("/api/v1/ports/desk/bootloader", {})).status == 200
        await served.until_idle()
        assert board.lines[before:] == [RESET, STRAP, IDLE]


async def test_a_request_that_is_disconnected_gives_the_port_back(lab: Lab) -> None:
    lab.board.answers.clear()  # the kernel takes its time
    resetting = asyncio.ensure_future(lab.client.post("/api/v1/ports/desk/reset", {}))
    await until(lambda: lab.served.port.arbiter)
    disconnected = await lab.client.post("/api/v1/ports/desk/disconnect", {"force": True})
    assert disconnected.status == 200
    refused = await resetting
    assert refused.status == 409
    assert "disconnected by 127.0.0.1:" in refused.error
    lab.board.answers.set()
    await lab.served.until_idle()
    assert (await lab.client.post("/api/v1/ports/desk/reset", {})).status == 200


async def test_clients_are_disconnected_if_it_is_forced(board: PtyBoard) -> None:
    async with (
        serving(board, sharing=Sharing.PREEMPT) as served,
        http_client(running(served)) as client,
    ):
        with (
            await TcpClient.connect(served.tcp_port) as first,
            await TcpClient.connect(served.tcp_port) as second,
        ):
            await until(lambda: len(served.port.arbiter) == 2)
            answered = await client.post("/api/v1/ports/desk/disconnect", {"force": True})
            assert answered.status == 200
            for each in (first, second):
                told = await each.receive_to_end()
                assert b"desk: disconnected by 127.0.0.1:" in told
        await served.until_idle()
        assert (await client.post("/api/v1/ports/desk/disconnect", {})).status == 200


async def test_bytes_are_written_when_nobody_has_the_port(lab: Lab) -> None:
    lab.board.start_reading()
    path = "/api/v1/ports/desk/write"
    assert (await lab.client.post(path, data=b"\x00\xffAT\r", headers=BYTES)).status == 200
    await until(lambda: lab.board.received == b"\x00\xffAT\r")
    await lab.served.until_idle()
    too_much = b"x" * (controls_api.MAX_WRITE_BYTES + 1)
    assert (await lab.client.post(path, data=too_much, headers=BYTES)).status == 413
    assert (await lab.client.post(path, {"a": 1})).status == 415
    assert (await lab.client.post(path + "?force=1", data=b"x", headers=BYTES)).status == 400


async def test_bytes_go_beside_a_client_s_if_the_port_is_shared_or_it_is_forced(
    lab: Lab,
) -> None:
    lab.board.start_reading()
    with await TcpClient.connect(lab.served.tcp_port) as user:
        await user.receive_wire(GREETING)
        path = "/api/v1/ports/desk/write"
        assert (await lab.client.post(path, data=b"x", headers=BYTES)).status == 409
        path += "?force=true"
        assert (await lab.client.post(path, data=b"y", headers=BYTES)).status == 200
        await until(lambda: lab.board.received == b"y")


async def test_a_shared_port_is_written_to_by_all(board: PtyBoard) -> None:
    async with (
        serving(board, sharing=Sharing.SHARED) as served,
        http_client(running(served)) as client,
    ):
        board.start_reading()
        with await TcpClient.connect(served.tcp_port) as user:
            await user.receive_wire(GREETING)
            path = "/api/v1/ports/desk/write"
            assert (await client.post(path, data=b"x", headers=BYTES)).status == 200
            await user.send(b"y")
            await until(lambda: board.received == b"xy")


@pytest.mark.parametrize("what", ["reset", "bootloader", "write"])
@pytest.mark.parametrize("force", [False, True])
async def test_a_board_that_is_not_there_is_a_409(what: str, force: bool, tmp_path: Path) -> None:
    with PtyBoard(tmp_path, plugged_in=False) as board:
        board.plug()
        async with serving(board) as served, http_client(running(served)) as client:
            board.unplug()
            await until(lambda: served.port.state is PortState.ABSENT)
            if what == "write":
                path = f"/api/v1/ports/desk/write?force={str(force).lower()}"
                answered = await client.post(path, data=b"x", headers=BYTES)
            else:
                answered = await client.post(f"/api/v1/ports/desk/{what}", {"force": force})
            assert answered.status == 409
            assert answered.error == "desk: absent: not plugged in"


@pytest.mark.parametrize("force", [False, True])
async def test_a_board_that_vanishes_meanwhile_is_a_409(force: bool, lab: Lab) -> None:
    users = []
    if force:
        users.append(await TcpClient.connect(lab.served.tcp_port))
        await users[0].receive_wire(GREETING)
    lab.board.answers.clear()
    asked = asyncio.create_task(lab.client.post("/api/v1/ports/desk/reset", {"force": force}))
    await until(lambda: lab.served.port.state is PortState.IN_USE)
    await asyncio.sleep(0.02)
    lab.board.lines_error = OSError(5, "Input/output error")
    lab.board.answers.set()
    answered = await asked
    assert answered.status == 409
    assert answered.error.startswith("desk: ")
    for user in users:
        user.close()


async def test_a_kernel_that_does_not_answer_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controls_api, "_WRITE_LIMIT_S", 0.05)
    monkeypatch.setattr(claim_module, "GRANT_LIMIT_S", 0.05)
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served, http_client(running(served)) as client:
            # The board reads nothing, and this is more than the kernel ever keeps for it.
            served.port.write(b"x" * (1 << 20))
            path = "/api/v1/ports/desk/write"
            answered = await client.post(path, data=b"x", headers=BYTES)
            assert answered.status == 409
            assert "not done within" in answered.error
            board.start_reading()
            await served.until_idle()


@pytest.mark.parametrize(
    ("path", "content", "error"),
    [
        ("reset", {"force": 1}, "force must be true or false"),
        ("reset", {"forec": True}, "unknown key 'forec' (known: force)"),
        ("resume", {"force": True}, "unknown key 'force' (known: none)"),
        ("release", {"reason": ""}, "reason must be 1 to 100 printable characters"),
        ("release", {"reason": "a\nb"}, "reason must be 1 to 100 printable characters"),
        ("release", {"force": "yes"}, "force must be true or false"),
    ],
)
async def test_what_is_not_understood_is_not_done(
    path: str, content: dict[str, object], error: str, lab: Lab
) -> None:
    answered = await lab.client.post(f"/api/v1/ports/desk/{path}", content)
    assert (answered.status, answered.error) == (400, error)
    assert lab.served.port.state is PortState.IDLE


async def state_of(client: HttpClient) -> tuple[str, str]:
    desk = (await client.get("/api/v1/ports/desk")).content
    return desk["state"], desk["reason"]


async def test_a_tty_is_left_to_a_local_tool_and_taken_back(lab: Lab) -> None:
    released = await lab.client.post("/api/v1/ports/desk/release", {"reason": "for openocd"})
    assert released.status == 200
    assert released.content["state"] == "released"
    assert await state_of(lab.client) == ("released", "for openocd")
    answered = await lab.client.post("/api/v1/ports/desk/reset", {})
    assert (answered.status, answered.error) == (409, "desk: released: for openocd")
    assert (await lab.client.post("/api/v1/ports/desk/resume", {})).status == 200
    await until(lambda: lab.served.port.state is PortState.IDLE)
    # Resuming what is not released changes nothing.
    assert (await lab.client.post("/api/v1/ports/desk/resume", {})).status == 200


async def test_a_tty_in_use_is_left_only_if_it_is_forced(lab: Lab) -> None:
    with await TcpClient.connect(lab.served.tcp_port) as user:
        await user.receive_wire(GREETING)
        refused = await lab.client.post("/api/v1/ports/desk/release", {})
        assert refused.status == 409
        assert refused.error.startswith(f"desk: in use by {user.name}")
        forced = await lab.client.post("/api/v1/ports/desk/release", {"force": True})
        assert forced.status == 200
        assert b"desk: released for a local tool" in await user.receive_to_end()
    await lab.client.post("/api/v1/ports/desk/resume", {})
    await lab.served.until_idle()
