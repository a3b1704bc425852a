"""What `GET /api/ports` shows."""

from pathlib import Path

from tests.support.http_lab import http_client, running
from tests.support.pty_board import PtyBoard, serving
from tests.support.tcp_client import GREETING, TcpClient


async def test_all_ports_are_shown_in_their_order(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served, http_client(running(served)) as client:
            shown = (await client.get("/api/ports")).content
            assert shown["version"] == "1.2.3"
            [desk] = shown["ports"]
            assert desk["name"] == "desk"
            assert desk["state"] == "idle"
            assert desk["tcp_port"] == served.tcp_port
            assert (desk["baud"], desk["dtr"], desk["rts"]) == (115200, False, False)
            assert desk["clients"] == []
            assert desk["usb"] is None


async def test_a_port_is_shown_with_who_has_it(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served, http_client(running(served)) as client:
            with await TcpClient.connect(served.tcp_port) as tcp_client:
                await tcp_client.receive_wire(GREETING)
                await board.write(b"hello")
                await tcp_client.receive_data(b"hello")
                desk = (await client.get("/api/ports/desk")).content
                assert desk["state"] == "in use"
                assert desk["client"] == tcp_client.name
                assert desk["clients"] == [{"name": tcp_client.name, "drives": True}]
                assert (desk["recorded_from"], desk["recorded_to"]) == (0, 5)
            await served.until_idle()


async def test_a_port_that_is_not_there_is_a_404_with_one_line(tmp_path: Path) -> None:
    async with http_client([]) as client:
        assert (await client.get("/api/ports")).content["ports"] == []
        answered = await client.get("/api/ports/desk")
        assert answered.status == 404
        assert answered.error == "there is no port 'desk'"


async def test_a_port_without_a_board_has_no_settings(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served, http_client(running(served)) as client:
            board.unplug()
            while (desk := (await client.get("/api/ports/desk")).content)["state"] != "absent":
                pass
            assert desk["reason"]
            assert (desk["baud"], desk["dtr"], desk["rts"], desk["settings"]) == (
                None,
                None,
                None,
                "",
            )
