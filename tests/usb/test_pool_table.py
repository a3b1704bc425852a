"""Which port of a pool belongs to which device, whatever is plugged in when."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.usb_match import UsbTty
from gateway.usb.pool_table import MAX_RECORDS, PoolTable, Record, Served

POOL = range(4100, 4110)
TODAY = 20_000


def board(socket: str, serial: str = "", *, interface: int = 0, usb: int = 0x10C4) -> UsbTty:
    return UsbTty(
        path=f"/dev/tty-{socket}-{interface}",
        vendor_id=usb,
        product_id=0xEA60,
        location=f"1-{socket}",
        socket=f"c-usbv2-{socket}",
        interface=interface,
        serial=serial,
    )


def update(table: PoolTable, *ttys: UsbTty, pool: range = POOL, day: int = TODAY) -> dict[str, int]:
    """What each device is served at, by its path."""
    return by_path(serve(table, *ttys, pool=pool, day=day))


def serve(table: PoolTable, *ttys: UsbTty, pool: range = POOL, day: int = TODAY) -> Served:
    return table.update({"shelf": pool}, {"shelf": ttys}, ttys, day)


def by_path(served: Served) -> dict[str, int]:
    return {tty.path: tcp_port for (_, tcp_port), tty in served.ttys.items()}


def test_new_devices_get_the_lowest_ports_in_their_order() -> None:
    table = PoolTable()
    assert list(update(table, board("1"), board("2"), board("3")).values()) == [4100, 4101, 4102]
    assert table.tcp_ports("shelf", POOL) == [4100, 4101, 4102]
    assert table.tcp_ports("other", POOL) == []


def test_a_device_with_a_serial_number_keeps_its_port_in_any_socket() -> None:
    table = PoolTable()
    update(table, board("1", "a"), board("2", "b"))
    assert update(table, board("7", "b")) == {board("7").path: 4101}
    assert update(table, board("1", "b"), board("2", "a")) == {
        board("1").path: 4101,
        board("2").path: 4100,
    }


@pytest.mark.parametrize("serial", ["", "0001", "000000"])
def test_a_device_without_one_is_known_by_its_socket(serial: str) -> None:
    table = PoolTable()
    update(table, board("1", serial), board("2", serial))
    assert update(table, board("2", serial)) == {board("2").path: 4101}
    assert update(table, board("3", serial)) == {board("3").path: 4102}
    assert update(table, board("1", serial)) == {board("1").path: 4100}


def test_a_serial_number_that_turns_out_to_be_shared_counts_no_more() -> None:
    table = PoolTable()
    first, twin = board("1", "same"), board("2", "same")
    assert update(table, first) == {first.path: 4100}
    assert update(table, first, twin) == {first.path: 4100, twin.path: 4101}
    # From now on, whichever comes first.
    assert update(table, twin) == {twin.path: 4101}
    assert update(table, first) == {first.path: 4100}
    again = PoolTable.from_json(table.to_json())
    assert update(again, twin) == {twin.path: 4101}


def test_a_number_is_shared_with_a_device_outside_the_pool_as_well() -> None:
    table = PoolTable()
    inside, outside = board("1", "same"), board("2", "same")
    served = table.update({"shelf": POOL}, {"shelf": [inside]}, [inside, outside], TODAY)
    assert list(served.ttys.values()) == [inside]
    assert next(iter(table.records.values())).serial == ""


def test_the_ttys_of_one_device_have_ports_of_their_own() -> None:
    table = PoolTable()
    ttys = [board("1", "a", interface=0), board("1", "a", interface=1)]
    assert list(update(table, *ttys).values()) == [4100, 4101]
    assert table.shared == set()


def test_in_a_full_pool_who_has_been_gone_the_longest_gives_way() -> None:
    table = PoolTable()
    pool = range(4100, 4102)
    update(table, board("1", "a"), pool=pool, day=TODAY)
    update(table, board("2", "b"), pool=pool, day=TODAY - 1)
    served = serve(table, board("3", "c"), pool=pool, day=TODAY + 1)
    assert by_path(served) == {board("3").path: 4101}
    assert [record.tcp_port for record in served.replaced] == [4101]
    assert table.tcp_ports("shelf", pool) == [4100, 4101]


def test_who_is_there_never_gives_way() -> None:
    table = PoolTable()
    pool = range(4100, 4102)
    one, two, three = board("1", "a"), board("2", "b"), board("3", "c")
    served = serve(table, one, two, three, pool=pool)
    assert by_path(served) == {one.path: 4100, two.path: 4101}
    assert served.left_out == [("shelf", three)]
    assert by_path(serve(table, three, two, one, pool=pool)) == {one.path: 4100, two.path: 4101}


def test_a_clock_that_was_wrong_does_not_age_a_device() -> None:
    table = PoolTable()
    update(table, board("1", "a"), day=TODAY)
    update(table, board("1", "a"), day=0)
    assert table.records["shelf", 4100].day == TODAY


def test_nothing_changes_while_the_same_devices_come_and_go() -> None:
    table = PoolTable()
    update(table, board("1", "a"), board("2"))
    before = table.to_json()
    for ttys in ([], [board("2")], [board("1", "a")], [board("2"), board("1", "a")]):
        update(table, *ttys)
        assert table.to_json() == before


def test_a_pool_that_is_moved_gives_new_ports_and_forgets_the_old() -> None:
    table = PoolTable()
    update(table, board("1", "a"), board("2", "b"))
    assert update(table, board("2", "b"), pool=range(5000, 5010)) == {board("2").path: 5000}
    assert update(table, board("1", "a")) == {board("1").path: 4100}
    assert sorted(table.records) == [("shelf", 4100), ("shelf", 5000)]


def test_pools_do_not_meet() -> None:
    table = PoolTable()
    one, two = board("1"), board("2", usb=0x1A86)
    pools = {"a": range(4100, 4110), "b": range(4200, 4210)}
    served = table.update(pools, {"a": [one], "b": [two]}, [one, two], TODAY)
    assert served.ttys == {("a", 4100): one, ("b", 4200): two}


def test_what_is_kept_is_bounded() -> None:
    records = (Record(f"pool{n}", 4100, f"s{n}", "x", day=n) for n in range(MAX_RECORDS + 10))
    table = PoolTable(records)
    update(table, board("1", "a"), day=10**6)
    assert len(table.records) == MAX_RECORDS
    assert ("shelf", 4100) in table.records
    assert ("pool0", 4100) not in table.records


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        "x",
        {},
        {"version": 2, "records": [], "shared": []},
        {"version": 1, "records": 5, "shared": []},
        {"version": 1, "records": [{}], "shared": []},
        {"version": 1, "records": [[]], "shared": []},
        {"version": 1, "records": [], "shared": [1]},
        {
            "version": 1,
            "shared": [],
            "records": [{"pool": "p", "tcp_port": "4100", "serial": "", "socket": "", "day": 1}],
        },
        {
            "version": 1,
            "shared": [],
            "records": [{"pool": "p" * 999, "tcp_port": 1, "serial": "", "socket": "", "day": 1}],
        },
        {
            "version": 1,
            "shared": [],
            "records": [{"pool": "p", "tcp_port": True, "serial": "", "socket": "", "day": 1}],
        },
    ],
)
def test_what_is_no_table_is_refused(data: object) -> None:
    with pytest.raises(ValueError, match=r".+"):
        PoolTable.from_json(data)


def test_a_table_that_gives_a_port_or_a_device_twice_keeps_the_first() -> None:
    records = [
        Record("p", 1, "a", "x", 1),
        Record("p", 1, "b", "x", 1),
        Record("p", 2, "a", "x", 1),
    ]
    assert list(PoolTable(records).records.values()) == records[:1]


BOARDS = st.lists(
    st.tuples(st.integers(1, 9), st.sampled_from(["", "0001", "a", "b", "c"])),
    min_size=1,
    max_size=6,
    unique_by=lambda each: each[0],
).map(lambda all_: [board(str(socket), serial) for socket, serial in all_])


@given(BOARDS, st.data())
def test_once_all_were_seen_together_each_keeps_its_port_in_any_order(
    boards: list[UsbTty], data: st.DataObject
) -> None:
    table = PoolTable()
    # They may have come one by one before, in any order.
    for tty in data.draw(st.lists(st.sampled_from(boards), max_size=4)):
        update(table, tty)
    home = update(table, *boards)
    assert len(set(home.values())) == len(boards)
    for _ in range(data.draw(st.integers(1, 5))):
        some = data.draw(st.lists(st.sampled_from(boards), unique_by=lambda tty: tty.path))
        if data.draw(st.booleans()):
            table = PoolTable.from_json(json.loads(json.dumps(table.to_json())))  # a restart
        got = update(table, *some)
        assert got == {tty.path: home[tty.path] for tty in some}


@given(BOARDS, st.data())
def test_a_board_whose_number_is_its_own_keeps_its_port_wherever_it_goes(
    boards: list[UsbTty], data: st.DataObject
) -> None:
    table = PoolTable()
    home = update(table, *boards)
    own = [tty for tty in boards if tty.serial_key and tty.serial_key not in table.shared]
    for tty in own:
        moved = replace(tty, socket=f"c-usbv2-{data.draw(st.integers(10, 12))}", path="/dev/new")
        assert update(table, moved) == {"/dev/new": home[tty.path]}
