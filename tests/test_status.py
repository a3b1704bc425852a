from __future__ import annotations

import json
from dataclasses import replace

import pytest

from gateway.status import PortSnapshot, from_json, notes_from_json, to_json, to_table

DESK = PortSnapshot(
    name="desk",
    address="127.0.0.1:4001",
    device="/dev/ttyUSB0",
    state="in use",
    reason="",
    client="10.0.0.5:51234",
    since="14:03:22",
    settings="115200 8N1",
    lines="DTR on, RTS on",
    received_bytes=1536,
    sent_bytes=12,
    sessions=3,
    refused=1,
    not_allowed=20,
    too_many=300,
    output_dropped_bytes=1024,
    input_dropped_bytes=1024,
)
SHELF = replace(
    DESK,
    name="shelf",
    address="",
    state="broken",
    reason="not a serial port",
    client="",
    since="",
    received_bytes=5 << 30,
)


def test_a_snapshot_survives_the_way_through_json() -> None:
    line = to_json("1.0", [DESK, SHELF])
    assert "\n" not in line
    assert from_json(line) == ("1.0", [DESK, SHELF])


def test_fields_of_a_newer_service_are_left_out() -> None:
    content = json.loads(to_json("1.0", [DESK]))
    content["ports"][0]["mood"] = "good"
    assert from_json(json.dumps(content)) == ("1.0", [DESK])


@pytest.mark.parametrize(
    "line",
    ["", "{}", "[]", "null", '{"format": 2}', '{"format": 1, "version": "1", "ports": [{}]}'],
)
def test_what_is_no_snapshot_is_told_in_one_line(line: str) -> None:
    with pytest.raises(ValueError, match="snapshot") as refusal:
        from_json(line)
    assert "\n" not in str(refusal.value)


def test_the_table_has_a_line_a_port_and_aligned_columns() -> None:
    head, desk, shelf = to_table([DESK, SHELF]).splitlines()
    assert desk.index("127.0.0.1") == head.index("ADDRESS") == shelf.index("not bound")
    assert "broken: not a serial port" in shelf
    assert desk.split()[-7:] == ["1.5", "KiB", "12", "B", "2.0", "KiB", "321"]
    assert "5.0 GiB" in shelf


def test_no_ports_are_a_head_alone() -> None:
    assert len(to_table([]).splitlines()) == 1


def test_devices_that_no_port_serves_are_lines_for_a_person() -> None:
    line = to_json("1.0", [DESK], {"10c4:ea60 CP2102 at 1-1": "no tty: claimed by brltty"})
    assert from_json(line) == ("1.0", [DESK])
    assert notes_from_json(line) == ["10c4:ea60 CP2102 at 1-1: no tty: claimed by brltty"]
    older = json.dumps({"format": 1, "version": "0.9", "ports": []})
    for none in (to_json("1.0", [DESK]), older, "[]", "{", '{"not_served": [{}]}'):
        assert notes_from_json(none) == []
