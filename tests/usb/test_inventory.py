"""Boards that come, go and move under a running service, and which port serves which."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import tracemalloc
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.config.usb_match import UsbTty
from gateway.status import parse
from gateway.usb.pools import PoolTable, Record, write_table
from gateway.usb.sysfs import Sysfs
from tests.conftest import open_fds
from tests.support.fake_sysfs import CH340, CP2102, CP2102N, FT2232, USB_JTAG
from tests.support.pty_board import LoopClock, turns, until
from tests.support.tcp_client import GREETING, TcpClient
from tests.support.usb_lab import UsbLab

#: Below what the kernel gives out by itself, and another one in each process that runs tests.
FIRST = 20_000 + os.getpid() % 100 * 100
SHELF = f"name: shelf, tcp: {FIRST}-{FIRST + 9}, device: [{{usb: '10c4:*'}}, {{usb: '1a86:*'}}]"


def notes(lab: UsbLab) -> list[str]:
    """USB devices that no port serves, as `status` prints them."""
    return [f"{device}: {reason}" for device, reason in parse(lab.service.snapshot())[1].items()]


async def answer(lab: UsbLab, name: str) -> bytes:
    """The answer to a client that is not served."""
    with await TcpClient.connect(lab.tcp_port(name)) as client:
        return await client.receive_to_end()


# --- matches


async def test_a_board_is_served_from_plugging_to_unplugging(
    lab: UsbLab,
) -> None:
    await lab.start("name: desk, tcp: 0, device: {location: 1-1.3}")
    assert await answer(lab, "desk") == b"desk: absent: not plugged in\r\n"
    with LoopClock():  # nothing waits for time to pass
        for product in (CH340, CP2102N):
            lab.plug(product, "1-1.3")
            await lab.until_open("desk")
            lab.unplug("1-1.3")
            await lab.until_states(["desk"], "absent")


async def test_a_board_is_found_in_any_socket_and_under_any_name(lab: UsbLab) -> None:
    await lab.start(
        "name: mine, tcp: 0, device: {serial: 8a2f1c0d9e3bec11a5d4f3d0639e525b}",
        "name: other, tcp: 0, device: {usb: '1a86:7523'}",
    )
    lab.plug(CP2102N, "1-1")
    await lab.until_open("mine")
    lab.unplug("1-1")
    await lab.until_states(["mine"], "absent")
    lab.plug(CH340, "1-2")  # which gets ttyUSB0
    lab.plug(CP2102N, "1-3")
    await lab.until_open("mine", "other")
    assert lab.opened() == {"mine": "1-3", "other": "1-2"}


async def test_a_board_that_is_there_at_the_start_is_served_from_the_start(lab: UsbLab) -> None:
    lab.usb.plug(FT2232, "1-1")
    with capture_logs() as logs:
        await lab.start(
            "name: jtag, tcp: 0, device: {serial: FT7ABC12, interface: 0}",
            "name: uart, tcp: 0, device: {location: '1-1:1.1'}",
        )
        await lab.until_open("jtag", "uart")
    assert "device_open_failed" not in {log["event"] for log in logs}
    paths = {name: lab.device(name)._tty._location.path for name in lab.opened()}  # type: ignore[union-attr]
    assert paths == dict(zip(("jtag", "uart"), lab.usb.tty_paths("1-1"), strict=True))


async def test_a_client_is_kept_when_its_board_comes_back_under_another_name(
    lab: UsbLab,
) -> None:
    await lab.start("name: c3, tcp: 0, grace_s: 60, device: {serial: 7C:DF:A1:B0:42:10}")
    lab.plug(USB_JTAG, "1-1")
    await lab.until_open("c3")
    with await TcpClient.connect(lab.tcp_port("c3")) as client:
        await client.receive_wire(GREETING)
        os.write(lab.usb.master("1-1"), b"before")
        await client.receive_data(b"before")
        lab.unplug("1-1")
        await lab.until_states(["c3"], "offline")
        lab.usb.plug(CH340, "1-7")
        (lab.usb.dev / "ttyACM0").symlink_to("/dev/null")  # held by somebody else
        lab.plug(USB_JTAG, "1-1")
        await lab.until_states(["c3"], "in use")
        assert lab.usb.tty_paths("1-1")[0].endswith("ttyACM1")
        os.write(lab.usb.master("1-1"), b"after")
        await client.receive_data(b"beforeafter")
    (lab.usb.dev / "ttyACM0").unlink()


async def test_a_second_board_that_fits_breaks_the_port_until_it_is_gone(lab: UsbLab) -> None:
    await lab.start("name: desk, tcp: 0, device: {usb: '10c4:ea60'}")
    lab.plug(CP2102, "1-1")
    await lab.until_open("desk")
    with capture_logs() as logs:
        lab.plug(CP2102, "1-2")
        await lab.until_states(["desk"], "broken")
    said = (await answer(lab, "desk")).decode()
    assert said.startswith("desk: broken: 2 devices fit: ")
    assert "at 1-1:1.0" in said
    assert "at 1-2:1.0" in said
    assert {"device_lost", "usb_plugged_in"} <= {log["event"] for log in logs}
    lab.unplug("1-1")
    await lab.until_open("desk")
    assert lab.opened() == {"desk": "1-2"}


async def test_two_ports_that_fit_one_board_are_both_broken(lab: UsbLab) -> None:
    await lab.start(
        "name: a, tcp: 0, device: {usb: '10c4:ea60'}",
        "name: b, tcp: 0, device: {location: 1-1}",
        "name: c, tcp: 0, device: tmp_path/dev/ttyUSB1",
    )
    lab.plug(CP2102, "1-1")
    lab.plug(CH340, "1-2")
    await lab.until_states(["a", "b"], "broken")
    await lab.until_open("c")
    assert (await answer(lab, "a")).endswith(b" fits b as well\r\n")


async def test_a_client_keeps_its_board_when_another_one_fits(lab: UsbLab) -> None:
    await lab.start("name: desk, tcp: 0, device: {usb: '10c4:ea60'}")
    lab.plug(CP2102, "1-1")
    await lab.until_open("desk")
    with await TcpClient.connect(lab.tcp_port("desk")) as client:
        await client.receive_wire(GREETING)
        lab.plug(CP2102, "1-2")
        await turns(50)
        os.write(lab.usb.master("1-1"), b"still yours")
        await client.receive_data(b"still yours")
    await lab.until_states(["desk"], "broken")


async def test_alternatives_follow_the_plugged_in_boards(lab: UsbLab) -> None:
    await lab.start("name: desk, tcp: 0, device: [{location: 1-1}, {location: 1-2}]")
    lab.plug(CH340, "1-2")
    await lab.until_open("desk")
    assert lab.opened() == {"desk": "1-2"}
    lab.plug(CH340, "1-1")
    await until(lambda: lab.opened() == {"desk": "1-1"})


async def test_a_client_may_wait_for_its_board(lab: UsbLab) -> None:
    await lab.start("name: desk, tcp: 0, on_absent: wait, device: {location: 1-1}")
    await lab.until_states(["desk"], "absent")
    with (
        await TcpClient.connect(lab.tcp_port("desk")) as first,
        await TcpClient.connect(lab.tcp_port("desk")) as second,
    ):
        with LoopClock() as clock:
            for _ in range(5):
                await clock.advance(1.0)
            lab.plug(CH340, "1-1")
            await first.receive_wire(GREETING)
            await clock.advance(1.0)
            said = await second.receive_to_end()
        assert said.startswith(b"desk: in use by ")


async def test_a_client_that_has_left_no_longer_waits(lab: UsbLab) -> None:
    await lab.start("name: desk, tcp: 0, on_absent: wait, device: {location: 1-1}")
    await lab.until_states(["desk"], "absent")
    client = await TcpClient.connect(lab.tcp_port("desk"))
    await until(lambda: lab.device("desk").arbiter.has_waiting)
    client.close()
    with LoopClock() as clock:
        await turns(5)
        await clock.advance(1.1)
        await until(lambda: not lab.device("desk").arbiter.has_waiting)
        await clock.advance(1.1)


# --- pools


async def test_each_board_of_a_pool_has_a_port_and_keeps_it_over_a_reboot(lab: UsbLab) -> None:
    single = "name: golden, tcp: 0, device: {location: 1-1.1}"
    await lab.start(single, SHELF)
    for location in ("1-1.4", "1-1.1", "1-1.2"):
        lab.plug(CH340, location)
        await turns(20)
    await lab.until_open("golden", f"shelf-{FIRST}", f"shelf-{FIRST + 1}")
    home = lab.opened()
    assert home["golden"] == "1-1.1"
    lab.unplug("1-1.4")
    name = next(name for name, location in home.items() if location == "1-1.4")
    await lab.until_states([name], "absent")
    assert await answer(lab, name) == f"{name}: absent: not plugged in\r\n".encode()
    await lab.restart(single, SHELF)
    # It is listened for the one that is not there, too.
    assert sorted(lab.states()) == ["golden", f"shelf-{FIRST}", f"shelf-{FIRST + 1}"]
    lab.plug(CP2102N, "1-1.3")
    lab.plug(CH340, "1-1.4")
    await lab.until_open("golden", f"shelf-{FIRST}", f"shelf-{FIRST + 1}", f"shelf-{FIRST + 2}")
    assert lab.opened() == home | {f"shelf-{FIRST + 2}": "1-1.3"}


async def test_the_same_boards_get_the_same_ports_in_any_order(lab: UsbLab) -> None:
    boards = [(CH340, "1-1"), (CP2102, "1-2"), (CP2102, "1-3"), (CP2102N, "1-4")]
    for product, location in boards:
        lab.usb.plug(product, location)
    await lab.start(SHELF)
    names = [f"shelf-{FIRST + number}" for number in range(4)]
    await lab.until_open(*names)
    home = lab.opened()
    assert list(home.values()) == ["1-1", "1-2", "1-3", "1-4"]
    for turn in range(3):
        for _, location in boards:
            lab.unplug(location)
        await lab.until_states(names, "absent")
        for product, location in boards[turn:] + boards[:turn]:
            lab.plug(product, location)
        await lab.until_open(*names)
        assert lab.opened() == home


async def test_a_pool_takes_no_board_of_a_port_while_it_is_unplugged(lab: UsbLab) -> None:
    single = "name: golden, tcp: 0, device: {location: 1-1}"
    lab.usb.plug(CP2102N, "1-1")
    lab.usb.plug(CH340, "1-2")
    await lab.start(single, SHELF)
    await lab.until_open("golden", f"shelf-{FIRST}")
    for location in ("1-1", "1-2"):
        lab.usb.lose_nodes(location)
    # Works out again what belongs to whom, with what was plugged in a moment before.
    await lab.reload(single, SHELF, "name: other, tcp: 0, device: {location: 1-3}")
    assert sorted(lab.states()) == ["golden", "other", f"shelf-{FIRST}"]
    for location in ("1-1", "1-2"):
        lab.unplug(location)
    await lab.until_states(["golden", f"shelf-{FIRST}"], "absent")
    assert sorted(lab.states()) == ["golden", "other", f"shelf-{FIRST}"]


async def test_a_pool_s_record_of_a_port_s_board_is_dropped(lab: UsbLab) -> None:
    single = "name: golden, tcp: 0, device: {location: 1-1}"
    by_serial = f"name: silver, tcp: 0, device: {{serial: {CP2102N.serial}}}"
    boards = ((CH340, "1-1"), (CP2102N, "1-2"), (CH340, "1-3"))
    for product, location in boards:
        lab.usb.plug(product, location)
    # As an older version left it behind: a pool had them all.
    await lab.start(SHELF)
    await lab.until_open(*(f"shelf-{FIRST + number}" for number in range(3)))
    lab.unplug("1-2")
    await lab.until_states([f"shelf-{FIRST + 1}"], "absent")
    await lab.restart(single, by_serial, SHELF)
    await lab.until_open("golden", f"shelf-{FIRST + 2}")
    # Not known yet whose the one is that is unplugged.
    assert sorted(lab.states()) == [
        "golden",
        f"shelf-{FIRST + 1}",
        f"shelf-{FIRST + 2}",
        "silver",
    ]
    lab.plug(CP2102N, "1-5")
    await lab.until_open("silver")
    await until(lambda: sorted(lab.states()) == ["golden", f"shelf-{FIRST + 2}", "silver"])
    await lab.restart(SHELF)
    assert f"shelf-{FIRST + 2}" in lab.states()
    await lab.until_open(f"shelf-{FIRST + 2}")
    assert lab.opened()[f"shelf-{FIRST + 2}"] == "1-3"


async def test_an_ambiguous_port_takes_no_port_of_a_pool(lab: UsbLab) -> None:
    for location in ("1-1", "1-2"):
        lab.usb.plug(CH340, location)
    await lab.start(SHELF)
    await lab.until_open(f"shelf-{FIRST}", f"shelf-{FIRST + 1}")
    home = lab.opened()
    mistake = "name: golden, tcp: 0, device: {usb: '1a86:7523'}"
    await lab.reload(mistake, SHELF)
    await lab.until_states(["golden"], "broken")
    await lab.reload(SHELF)
    await lab.until_open(f"shelf-{FIRST}", f"shelf-{FIRST + 1}")
    assert lab.opened() == home


async def test_a_pool_does_not_open_a_jtag_channel_and_logs_it_once(
    lab: UsbLab, tmp_path: Path
) -> None:
    # As an older version left it behind, which served both channels.
    keys = [f"0403:{FT2232.serial}:1.{interface}-port0" for interface in (1, 0)]
    records = [Record("prog", FIRST + n, key, "somewhere", 20_000) for n, key in enumerate(keys)]
    write_table(tmp_path / "state", PoolTable(records).to_json())
    with capture_logs() as logs:
        await lab.start(f"name: prog, tcp: {FIRST}-{FIRST + 9}, device: {{usb: '0403:*'}}")
        lab.plug(FT2232, "1-1")
        await lab.until_open(f"prog-{FIRST}")
        lab.plug(CH340, "1-2")
        await until(lambda: sum(log["event"] == "usb_plugged_in" for log in logs) == 3)
    await until(lambda: list(lab.states()) == [f"prog-{FIRST}"])
    port = next(port for port in lab.service._ports)
    tty = lab.service._inventory.tty_of(port.config)
    assert tty is not None
    assert tty.interface == 1
    reasons = [log["reason"] for log in logs if log["event"] == "usb_not_served"]
    assert [reason.partition(";")[0] for reason in reasons] == ["JTAG channel"]


async def test_devices_that_are_not_served_are_in_the_status(lab: UsbLab) -> None:
    jtag, _ = lab.usb.plug(FT2232, "1-1")
    await lab.start("name: desk, tcp: 0, device: {location: 1-1}")
    await lab.until_open("desk")
    note = f"{jtag} (0403:6010 at 1-1:1.0): JTAG channel; to serve it all the same, give a port "
    assert notes(lab) == [f"{note}`interface: 0`"]
    # A device without a tty sends no event about one; others do.
    lab.usb.plug(CP2102N, "1-2", bound_to="usbfs")
    lab.plug(CH340, "1-3")
    await until(lambda: len(notes(lab)) == 2)
    last = notes(lab)[-1]
    assert last.startswith("10c4:ea60 CP2102, CP2102N, CP2104 at 1-2: no tty: claimed by ")


async def test_a_board_that_no_pool_serves_is_logged_once(lab: UsbLab) -> None:
    with capture_logs() as logs:
        await lab.start(
            f"name: one, tcp: {FIRST}-{FIRST}, device: {{usb: '1a86:*'}}",
            f"name: two, tcp: {FIRST + 10}-{FIRST + 11}, device: {{location: 1-5}}",
        )
        for location in ("1-1", "1-2", "1-5"):
            lab.plug(CH340, location)
        await lab.until_open(f"one-{FIRST}")
        for location in ("1-6", "1-7"):
            lab.plug(CP2102N, location)
        await until(lambda: sum(log["event"] == "usb_plugged_in" for log in logs) == 5)
    assert sorted(log["reason"] for log in logs if log["event"] == "usb_not_served") == [
        "fits the pools one, two",
        "the pool one is full",
    ]


async def test_a_replaced_port_of_a_pool_is_logged(lab: UsbLab) -> None:
    pool = f"name: one, tcp: {FIRST}-{FIRST}, device: {{usb: '1a86:*'}}"
    await lab.start(pool)
    lab.plug(CH340, "1-1")
    await lab.until_open(f"one-{FIRST}")
    lab.unplug("1-1")
    await lab.until_states([f"one-{FIRST}"], "absent")
    with capture_logs() as logs:
        lab.plug(CH340, "1-2")
        await lab.until_open(f"one-{FIRST}")
    assert "pool_port_reassigned" in {log["event"] for log in logs}


async def test_a_slow_first_scan_does_not_hold_up_the_start(
    lab: UsbLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    door = threading.Event()
    real = Sysfs.usb_ttys

    def usb_ttys(sysfs: Sysfs) -> list[UsbTty]:
        door.wait()
        return real(sysfs)

    monkeypatch.setattr(Sysfs, "usb_ttys", usb_ttys)
    with capture_logs() as logs, LoopClock() as clock:
        starting = asyncio.create_task(lab.start("name: desk, tcp: 0, device: {location: 1-1}"))
        while not starting.done():
            await clock.advance(1.0)
        assert "usb_scan_slow" in {log["event"] for log in logs}
        lab.usb.plug(CH340, "1-1")
        door.set()
        await lab.until_open("desk")


async def test_simulated_boards_need_no_watcher(lab: UsbLab) -> None:
    await lab.start("name: sim, tcp: 0, device: 'sim://esp32?heartbeat_s=0'")
    assert not lab.monitor.is_open


# --- many times


async def cycles(lab: UsbLab, count: int) -> None:
    """Plug two boards in and out, now and then with a client."""
    for number in range(count):
        lab.plug(CH340, "1-1")
        lab.plug(CP2102N, "1-2")
        await until(lambda: {"idle"} == set(lab.states().values()))
        if number % 10 == 0:
            with await TcpClient.connect(lab.tcp_port("desk")) as client:
                await client.receive_wire(GREETING)
                await until(lambda: lab.states()["desk"] == "in use")
                lab.unplug("1-1")
                await client.receive_to_end()
        else:
            lab.unplug("1-1")
        lab.unplug("1-2")
        await until(lambda: set(lab.states().values()) <= {"absent", "broken"})


def held_bytes() -> int:
    """What is allocated, but for the interpreter's table of interned texts.

    That is one block of 2 MB, which is made anew every some thousand texts, by whoever comes then.
    """
    blocks = [trace.size for trace in tracemalloc.take_snapshot().traces]
    return sum(size for size in blocks if size < 1_000_000)


@pytest.mark.parametrize(
    ("warm_up", "count"),
    [(20, 40), pytest.param(50, 1000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
)
async def test_plugging_in_and_out_leaves_nothing_behind(
    lab: UsbLab, warm_up: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.port.board_tty.LOSSES", 1_000_000)  # each cycle is a loss
    monkeypatch.setattr("gateway.session.session._LINGER_S", 0.0)
    pool = f"name: shelf, tcp: {FIRST}-{FIRST + 9}, device: {{usb: '10c4:*'}}"
    await lab.start("name: desk, tcp: 0, grace_s: 0, device: {usb: '1a86:*'}", pool)
    with capture_logs() as logs:

        async def after_some(cycle_count: int) -> tuple[object, ...]:
            await cycles(lab, cycle_count)
            logs.clear()
            await asyncio.sleep(1.2)
            await turns(20)
            gc.collect()
            fds = len(open_fds())
            return fds, threading.active_count(), len(asyncio.all_tasks())

        before = await after_some(warm_up)
        tracemalloc.start()
        try:
            await after_some(warm_up)
            memory_before = held_bytes()
            assert await after_some(count) == before
            memory_after = held_bytes()
        finally:
            tracemalloc.stop()
        # What grows with each cycle, in an object's size at least; caches grow once.
        assert memory_after - memory_before < 50_000 + 20 * count
