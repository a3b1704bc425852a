"""What `GET /api/v1/ports` shows."""

from pathlib import Path

from tests.support.http_lab import Lab, http_client


async def test_all_ports_are_shown_in_their_order(
    lab: Lab,
) -> None:
    shown = (await lab.client.get("/api/v1/ports")).content
    assert (shown["version"], shown["not_served"]) == ("1.2.3", [])
    [desk] = shown["ports"]
    assert (desk["name"], desk["state"]) == ("desk", "idle")
    assert desk["tcp_port"] == lab.served.tcp_port
    assert (await lab.client.get("/api/v1/ports/desk")).content == desk


async def test_usb_devices_without_a_port_are_shown() -> None:
    note = {"10c4:ea60 CP2102 at 1-1": "no tty: claimed by brltty"}
    async with http_client([], not_served=note) as client:
        shown = (await client.get("/api/v1/ports")).content
    assert shown["not_served"] == [
        {"device": "10c4:ea60 CP2102 at 1-1", "reason": "no tty: claimed by brltty"}
    ]


async def test_a_port_that_is_not_there_is_a_404_with_one_line(tmp_path: Path) -> None:
    async with http_client([]) as client:
        assert (await client.get("/api/v1/ports")).content["ports"] == []
        answered = await client.get("/api/v1/ports/desk")
        assert answered.status == 404
        assert answered.error == "there is no port 'desk'"
