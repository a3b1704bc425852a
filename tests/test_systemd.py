"""What the service manager is sent: by calls, by the reports of a clock, by the real service."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.__main__ import IMPORT_LIMIT_S
from gateway.systemd import REPORT_EVERY_S, START_LIMIT_S, Counts, ManagerReports, Notifier
from tests.support.processes import BackgroundProcess, Service
from tests.support.pty_board import LoopClock
from tests.support.service_manager import ServiceManager

#: Above what the kernel queues for a socket that nobody reads (net.unix.max_dgram_qlen).
MORE_THAN_FITS = 5000


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (Notifier.ready, "READY=1"),
        (Notifier.stopping, "STOPPING=1"),
        (Notifier.feed_watchdog, "WATCHDOG=1"),
        (lambda notifier: notifier.still_starting(1.5), "EXTEND_TIMEOUT_USEC=1500000"),
        (lambda notifier: notifier.status("2 ports, 1 open"), "STATUS=2 ports, 1 open"),
        # A second line would be a message of its own.
        (lambda notifier: notifier.status("a\nREADY=1"), "STATUS=a READY=1"),
    ],
)
def test_each_call_is_one_datagram(
    tmp_path: Path, call: Callable[[Notifier], bool], message: str
) -> None:
    with ServiceManager(tmp_path) as manager:
        assert call(Notifier(manager.environment))
        assert manager.waiting() == [message]


def test_a_reload_gives_the_time_when_it_began(tmp_path: Path) -> None:
    before_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    with ServiceManager(tmp_path) as manager:
        assert Notifier(manager.environment).reloading()
        [message] = manager.waiting()
    after_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    first, second = message.split("\n")
    assert first == "RELOADING=1"
    name, _, value = second.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before_ns // 1000 <= int(value) <= after_ns // 1000


def test_an_abstract_socket_is_reached() -> None:
    name = f"esp-gateway-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        assert Notifier({"NOTIFY_SOCKET": f"@{name}"}).ready()
        manager.settimeout(0)
        assert manager.recv(100) == b"READY=1"


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "relative/path"])
def test_without_a_local_socket_nobody_listens(address: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"})
    assert not notifier.has_manager
    assert not notifier.ready()
    assert notifier.watchdog_s is None


def test_no_environment_means_no_manager() -> None:
    assert not Notifier({}).has_manager


@pytest.mark.parametrize("name", ["gone", "x" * 200])
def test_a_socket_that_is_not_there_raises_nothing(tmp_path: Path, name: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / name)})
    assert notifier.has_manager
    assert not notifier.ready()


def test_a_full_socket_neither_blocks_nor_raises_and_takes_more_when_read(tmp_path: Path) -> None:
    with ServiceManager(tmp_path) as manager:
        notifier = Notifier(manager.environment)
        taken = 0
        while taken < MORE_THAN_FITS and notifier.feed_watchdog():
            taken += 1
        assert 0 < taken < MORE_THAN_FITS
        assert not notifier.ready()
        assert len(manager.waiting()) == taken
        assert notifier.ready()
        assert manager.waiting() == ["READY=1"]


@pytest.mark.parametrize(
    ("environment", "watchdog_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "me"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_fed_only_by_whom_it_is_meant_for(
    environment: dict[str, str], watchdog_s: float | None
) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": "/run/notify", **environment})
    assert notifier.watchdog_s == watchdog_s


IDLE = Counts(ports=3, listening=3, open=2, in_use=0, absent=1, broken=0)
STILL_STARTING = f"EXTEND_TIMEOUT_USEC={START_LIMIT_S * 1e6:.0f}"

#: The service as it is, but that SIGUSR1 gets its event loop stuck for good.
SERVICE_THAT_CAN_GET_STUCK = """
import signal, sys, time
from gateway.cli.main import main

def get_stuck(*_):
    print("stuck", file=sys.stderr, flush=True)
    time.sleep(3600)

signal.signal(signal.SIGUSR1, get_stuck)
sys.exit(main(["run", "--config", sys.argv[1]]))
"""


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        (IDLE, "3 ports, 2 open, 0 in use, 1 absent"),
        (replace(IDLE, ports=1, listening=1), "1 port, 2 open, 0 in use, 1 absent"),
        (replace(IDLE, broken=1), "3 ports, 2 open, 0 in use, 1 absent, 1 broken"),
        (replace(IDLE, listening=1), "3 ports, 2 open, 0 in use, 1 absent, 2 not listening yet"),
    ],
)
def test_counts_are_one_line(counts: Counts, text: str) -> None:
    assert str(counts) == text


@contextmanager
def reporting(
    manager: ServiceManager, counts: Callable[[], Counts]
) -> Iterator[tuple[ManagerReports, LoopClock]]:
    report = ManagerReports(Notifier(manager.environment), counts)
    with LoopClock() as clock:
        report.start()
        try:
            yield report, clock
        finally:
            report.stop()


async def test_it_is_ready_only_when_every_listener_is_bound(tmp_path: Path) -> None:
    counts = replace(IDLE, listening=2)
    with ServiceManager(tmp_path) as manager:
        with reporting(manager, lambda: counts) as (_, clock):
            assert manager.waiting() == [f"STATUS={counts}", STILL_STARTING]
            await clock.advance(REPORT_EVERY_S)
            assert manager.waiting() == [STILL_STARTING]
            counts = IDLE
            await clock.advance(REPORT_EVERY_S)
            assert manager.waiting() == [f"STATUS={IDLE}", "READY=1"]
            await clock.advance(REPORT_EVERY_S)
            assert manager.waiting() == []
        assert manager.waiting() == ["STOPPING=1"]


async def test_the_status_is_said_when_it_changes(tmp_path: Path) -> None:
    counts = IDLE
    with ServiceManager(tmp_path) as manager, reporting(manager, lambda: counts) as (_, clock):
        manager.waiting()
        counts = replace(IDLE, in_use=1)
        await clock.advance(REPORT_EVERY_S)
        assert manager.waiting() == ["STATUS=3 ports, 2 open, 1 in use, 1 absent"]
        await clock.advance(REPORT_EVERY_S)
        assert manager.waiting() == []


async def test_what_a_busy_manager_did_not_take_is_said_again(tmp_path: Path) -> None:
    with ServiceManager(tmp_path) as manager:
        flood = Notifier(manager.environment)
        while flood.feed_watchdog():
            pass
        with reporting(manager, lambda: IDLE) as (_, clock):
            assert set(manager.waiting()) == {"WATCHDOG=1"}
            await clock.advance(REPORT_EVERY_S)
            assert manager.waiting() == [f"STATUS={IDLE}", "READY=1"]


async def test_the_watchdog_is_fed_at_half_of_its_limit(tmp_path: Path) -> None:
    with (
        ServiceManager(tmp_path, WATCHDOG_USEC="600000") as manager,
        reporting(manager, lambda: IDLE) as (_, clock),
    ):
        assert manager.waiting() == [f"STATUS={IDLE}", "READY=1", "WATCHDOG=1"]
        await clock.advance(0.29)
        assert manager.waiting() == []
        await clock.advance(0.02)
        assert manager.waiting() == ["WATCHDOG=1"]
        await clock.advance(0.31)
        assert manager.waiting() == ["WATCHDOG=1"]


async def test_a_reload_is_announced_and_ended(tmp_path: Path) -> None:
    with ServiceManager(tmp_path) as manager, reporting(manager, lambda: IDLE) as (report, _):
        manager.waiting()
        report.reload_started()
        report.reload_ended(True)
        started, ended = manager.waiting()
        assert started.startswith("RELOADING=1\nMONOTONIC_USEC=")
        assert ended == "READY=1"


async def test_a_reload_that_failed_is_part_of_the_status_until_one_succeeds(
    tmp_path: Path,
) -> None:
    with ServiceManager(tmp_path) as manager, reporting(manager, lambda: IDLE) as (report, _):
        manager.waiting()
        report.reload_started()
        report.reload_ended(False)
        assert manager.waiting()[1:] == ["READY=1", f"STATUS={IDLE}, last reload failed"]
        report.reload_started()
        report.reload_ended(True)
        assert manager.waiting()[1:] == ["READY=1", f"STATUS={IDLE}"]


async def test_a_reload_does_not_make_ready_what_never_was(tmp_path: Path) -> None:
    unbound = replace(IDLE, listening=0)
    with ServiceManager(tmp_path) as manager, reporting(manager, lambda: unbound) as (report, _):
        report.reload_started()
        report.reload_ended(True)
        assert "READY=1" not in manager.waiting()


async def test_without_a_manager_nothing_is_counted() -> None:
    def counts() -> Counts:
        pytest.fail("counted for nobody")

    report = ManagerReports(Notifier({}), counts)
    with LoopClock() as clock:
        report.start()
        await clock.advance(10 * REPORT_EVERY_S)
        report.stop()


# The real service, as a process that a manager has started.


def config_for(folder: Path, *tcp_ports: int) -> Path:
    lines = ["ports:"]
    for number, tcp_port in enumerate(tcp_ports):
        lines += [f"  - name: p{number}", f"    tcp: {tcp_port}"]
        lines += [f"    device: /nowhere/tty{number}"]
    config = folder / "gateway.yaml"
    config.write_text("\n".join(lines) + "\n")
    return config


def test_the_service_is_ready_when_its_last_address_can_be_bound(tmp_path: Path) -> None:
    with ServiceManager(tmp_path) as manager, socket.socket() as blocker:
        blocker.bind(("127.0.0.1", 0))
        blocker.listen()
        config = config_for(tmp_path, 0, blocker.getsockname()[1])
        with Service(config, manager.environment) as service:
            service.wait_for_line("listen_failed")
            assert "READY=1" not in manager.receive_until(STILL_STARTING)
            manager.receive_until(STILL_STARTING)
            blocker.close()
            manager.receive_until("READY=1")
            assert "STATUS=2 ports, 0 open, 0 in use, 2 absent" in manager.messages
        manager.receive_until("STOPPING=1")


def blocked_module(folder: Path, name: str, condition: str = "True") -> dict[str, str]:
    """The environment in which importing a module does not end."""
    block = f"import sys, time\nif {condition}:\n    time.sleep(3600)\n"
    (folder / f"{name}.py").write_text(block)
    return {"PYTHONPATH": str(folder)}


def test_time_is_asked_for_before_anything_is_imported_and_sighup_is_survived(
    tmp_path: Path,
) -> None:
    environment = blocked_module(tmp_path, "yaml")
    with ServiceManager(tmp_path) as manager:
        service = Service(config_for(tmp_path, 0), environment | manager.environment)
        service.start()
        try:
            assert manager.receive() == f"EXTEND_TIMEOUT_USEC={IMPORT_LIMIT_S * 1e6:.0f}"
            assert manager.receive() == "STATUS=starting"
            service.send_signal(signal.SIGHUP)
            service.send_signal(signal.SIGTERM)
            assert service.wait_for_end() == -signal.SIGTERM
        finally:
            service.kill()


def test_sighup_is_survived_before_the_manager_can_be_asked_for_time(tmp_path: Path) -> None:
    # The first module that is imported for it.
    block = "import sys, time\nprint('importing', file=sys.stderr, flush=True)\ntime.sleep(3600)\n"
    (tmp_path / "socket.py").write_text(block)
    service = Service(config_for(tmp_path, 0), {"PYTHONPATH": str(tmp_path)})
    service.start()
    try:
        service.wait_for_line("importing")
        service.send_signal(signal.SIGHUP)
        service.send_signal(signal.SIGTERM)
        assert service.wait_for_end() == -signal.SIGTERM
    finally:
        service.kill()


def test_the_manager_is_asked_for_time_while_ports_are_started(tmp_path: Path) -> None:
    environment = blocked_module(tmp_path, "sitecustomize", "'gateway.simulator' in sys.orig_argv")
    config = config_for(tmp_path, 0)
    config.write_text(config.read_text() + "  - {name: b, tcp: 0, device: 'sim://esp32'}\n")
    with ServiceManager(tmp_path) as manager:
        with Service(config, environment | manager.environment):
            manager.receive_until("STATUS=2 ports, 0 open, 0 in use, 1 absent, 1 not listening yet")
            manager.receive_until(STILL_STARTING)
            manager.receive_until(STILL_STARTING)
        manager.receive_until("STOPPING=1")
        assert "READY=1" not in manager.messages


def test_the_service_is_ready_as_soon_as_its_ports_listen(tmp_path: Path) -> None:
    environment = blocked_module(tmp_path, "aiohttp")
    config = config_for(tmp_path, 0)
    config.write_text("http: 127.0.0.1:0\n" + config.read_text())
    with ServiceManager(tmp_path) as manager:
        with Service(config, environment | manager.environment):
            manager.receive_until("READY=1")
        manager.receive_until("STOPPING=1")


def test_the_service_tells_who_uses_it(tmp_path: Path) -> None:
    config = tmp_path / "gateway.yaml"
    config.write_text("ports: [{name: desk, tcp: 0, device: 'sim://esp32'}]\n")
    with ServiceManager(tmp_path) as manager, Service(config, manager.environment) as service:
        tcp_port = int(service.wait_for_line(r'"tcp_port": (\d+)')[1])
        manager.receive_until("STATUS=1 port, 1 open, 0 in use, 0 absent")
        with socket.create_connection(("127.0.0.1", tcp_port)):
            manager.receive_until("STATUS=1 port, 1 open, 1 in use, 0 absent")
        manager.receive_until("STATUS=1 port, 1 open, 0 in use, 0 absent")


def test_a_loop_that_is_stuck_feeds_the_watchdog_no_more(tmp_path: Path) -> None:
    feed_every_s = 0.1
    config = config_for(tmp_path, 0)
    with ServiceManager(tmp_path, WATCHDOG_USEC=str(int(2e6 * feed_every_s))) as manager:
        service = BackgroundProcess(
            [sys.executable, "-c", SERVICE_THAT_CAN_GET_STUCK, config], manager.environment
        )
        service.start()
        try:
            for _ in range(3):
                manager.receive_until("WATCHDOG=1")
            service.send_signal(signal.SIGUSR1)
            service.wait_for_line("^stuck$")
            manager.waiting()
            time.sleep(10 * feed_every_s)
            assert manager.waiting() == []
        finally:
            service.kill()


def test_a_watchdog_of_the_process_above_is_not_fed(tmp_path: Path) -> None:
    above = {"WATCHDOG_USEC": "20000", "WATCHDOG_PID": str(os.getpid())}
    with (
        ServiceManager(tmp_path, **above) as manager,
        Service(config_for(tmp_path, 0), manager.environment),
    ):
        manager.receive_until("READY=1")
        time.sleep(0.2)
        assert "WATCHDOG=1" not in manager.messages + manager.waiting()


def test_sighup_is_answered_in_the_log_and_ends_nothing(tmp_path: Path) -> None:
    with Service(config_for(tmp_path, 0)) as service:
        tcp_port = int(service.wait_for_line(r'"tcp_port": (\d+)')[1])
        service.send_signal(signal.SIGHUP)
        service.wait_for_line("configuration_reloaded")
        with socket.create_connection(("127.0.0.1", tcp_port)):
            service.wait_for_line("client_refused")
