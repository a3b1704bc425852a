"""What the service manager is sent: by calls, by reports on a clock, by the real service."""

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

IDLE = Counts(ports=3, listening=3, open=2, in_use=0, absent=1, broken=0)
STILL_STARTING = f"EXTEND_TIMEOUT_USEC={START_LIMIT_S * 1e6:.0f}"


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    with ServiceManager(tmp_path) as manager:
        yield manager


# Messages.


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
    manager: ServiceManager, call: Callable[[Notifier], bool], message: str
) -> None:
    assert call(Notifier(manager.environment))
    assert manager.waiting() == [message]


def test_a_reload_gives_the_time_when_it_began(manager: ServiceManager) -> None:
    before_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    assert Notifier(manager.environment).reloading()
    after_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    [message] = manager.waiting()
    value = message.removeprefix("RELOADING=1\nMONOTONIC_USEC=")
    assert before_ns // 1000 <= int(value) <= after_ns // 1000


def test_an_abstract_socket_is_reached() -> None:
    name = f"esp-gateway-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        assert Notifier({"NOTIFY_SOCKET": f"@{name}"}).ready()
        manager.settimeout(0)
        assert manager.recv(100) == b"READY=1"


@pytest.mark.parametrize(
    ("address", "has_manager"),
    [
        (None, False),
        ("", False),
        ("vsock:2:1234", False),
        ("relative/path", False),
        ("/nowhere/gone", True),
        ("/" + "x" * 200, True),
    ],
)
def test_without_a_socket_nothing_is_sent_or_raised(address: str | None, has_manager: bool) -> None:
    environment = {} if address is None else {"NOTIFY_SOCKET": address}
    notifier = Notifier({**environment, "WATCHDOG_USEC": "1000000"})
    assert notifier.has_manager is has_manager
    assert not notifier.ready()
    assert notifier.watchdog_s == (1.0 if has_manager else None)


def test_a_full_socket_neither_blocks_nor_raises_and_takes_more_when_read(
    manager: ServiceManager,
) -> None:
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
def test_the_watchdog_is_fed_only_by_the_process_for_which_it_is_meant(
    environment: dict[str, str], watchdog_s: float | None
) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": "/run/notify", **environment})
    assert notifier.watchdog_s == watchdog_s


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


# Reports on a clock.


class Reporting:
    """Reports of `counts`, which a test changes, to a manager; made and used within `reporting`."""

    def __init__(self, manager: ServiceManager, clock: LoopClock, counts: Counts) -> None:
        self.counts = counts
        self.reports = ManagerReports(Notifier(manager.environment), lambda: self.counts)
        self._manager = manager
        self._clock = clock

    async def messages(self, after_s: float = 0.0) -> list[str]:
        """What the manager has been sent since the last call and `after_s` more."""
        await self._clock.advance(after_s)
        return self._manager.waiting()


@contextmanager
def reporting(manager: ServiceManager, counts: Counts = IDLE) -> Iterator[Reporting]:
    with LoopClock() as clock:
        reporting = Reporting(manager, clock, counts)
        reporting.reports.start()
        try:
            yield reporting
        finally:
            reporting.reports.stop()


async def test_it_is_ready_only_when_every_listener_is_bound(manager: ServiceManager) -> None:
    with reporting(manager, replace(IDLE, listening=2)) as service:
        assert await service.messages() == [f"STATUS={service.counts}", STILL_STARTING]
        assert await service.messages(REPORT_EVERY_S) == [STILL_STARTING]
        service.counts = IDLE
        assert await service.messages(REPORT_EVERY_S) == [f"STATUS={IDLE}", "READY=1"]
        assert await service.messages(REPORT_EVERY_S) == []
        service.counts = replace(IDLE, in_use=1)
        assert await service.messages(REPORT_EVERY_S) == [f"STATUS={service.counts}"]
        assert await service.messages(REPORT_EVERY_S) == []
    assert manager.waiting() == ["STOPPING=1"]


async def test_what_a_busy_manager_did_not_take_is_sent_again(manager: ServiceManager) -> None:
    flood = Notifier(manager.environment)
    while flood.feed_watchdog():
        pass
    with reporting(manager) as service:
        assert set(await service.messages()) == {"WATCHDOG=1"}
        assert await service.messages(REPORT_EVERY_S) == [f"STATUS={IDLE}", "READY=1"]


async def test_the_watchdog_is_fed_at_half_of_its_limit(tmp_path: Path) -> None:
    with (
        ServiceManager(tmp_path, WATCHDOG_USEC="600000") as manager,
        reporting(manager) as service,
    ):
        assert await service.messages() == [f"STATUS={IDLE}", "READY=1", "WATCHDOG=1"]
        assert await service.messages(0.29) == []
        assert await service.messages(0.02) == ["WATCHDOG=1"]
        assert await service.messages(0.31) == ["WATCHDOG=1"]


async def test_a_reload_that_failed_is_part_of_the_status_until_one_succeeds(
    manager: ServiceManager,
) -> None:
    failed = f"STATUS={IDLE}, last reload failed"
    with reporting(manager) as service:
        await service.messages()
        for is_served, status in [(True, []), (False, [failed]), (True, [f"STATUS={IDLE}"])]:
            service.reports.reload_started()
            service.reports.reload_ended(is_served)
            started, *ended = await service.messages()
            assert started.startswith("RELOADING=1\nMONOTONIC_USEC=")
            assert ended == ["READY=1", *status]


async def test_a_reload_does_not_make_ready_what_never_was(manager: ServiceManager) -> None:
    with reporting(manager, replace(IDLE, listening=0)) as service:
        service.reports.reload_started()
        service.reports.reload_ended(True)
        assert "READY=1" not in await service.messages()


async def test_without_a_manager_nothing_is_counted() -> None:
    def counts() -> Counts:
        pytest.fail("counted for no one")

    reports = ManagerReports(Notifier({}), counts)
    with LoopClock() as clock:
        reports.start()
        await clock.advance(10 * REPORT_EVERY_S)
        reports.stop()


# The real service, as a process that a manager has started.

SIMULATED = "  - {name: b, tcp: 0, device: 'sim://esp32'}\n"


def config_for(folder: Path, *tcp_ports: int, more: str = "") -> Path:
    config = folder / "gateway.yaml"
    entries = [
        f"  - {{name: p{number}, tcp: {tcp_port}, device: /nowhere/tty{number}}}\n"
        for number, tcp_port in enumerate(tcp_ports)
    ]
    config.write_text("".join(["ports:\n", *entries, more]))
    return config


def blocked_module(folder: Path, name: str, condition: str = "True") -> dict[str, str]:
    """The environment in which importing a module is told and does not end."""
    lines = ["import sys, time", f"if {condition}:"]
    lines += ["    print('importing', file=sys.stderr, flush=True)", "    time.sleep(3600)\n"]
    (folder / f"{name}.py").write_text("\n".join(lines))
    return {"PYTHONPATH": str(folder)}


def test_the_service_is_ready_when_its_last_address_can_be_bound(
    tmp_path: Path, manager: ServiceManager
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as blocker:
        config = config_for(tmp_path, 0, blocker.getsockname()[1])
        with Service(config, manager.environment) as service:
            service.wait_for_line("listen_failed")
            assert "READY=1" not in manager.receive_until(STILL_STARTING)
            manager.receive_until(STILL_STARTING)
            blocker.close()
            manager.receive_until("READY=1")
            assert "STATUS=2 ports, 0 open, 0 in use, 2 absent" in manager.messages
    manager.receive_until("STOPPING=1")


@pytest.mark.parametrize("module", ["socket", "yaml"])
def test_sighup_is_survived_while_modules_are_imported(
    tmp_path: Path, manager: ServiceManager, module: str
) -> None:
    # `socket` is imported to ask the manager for time, `yaml` after that.
    environment = blocked_module(tmp_path, module) | manager.environment
    service = Service(config_for(tmp_path, 0), environment)
    service.start()
    try:
        service.wait_for_line("importing")
        asked = [f"EXTEND_TIMEOUT_USEC={IMPORT_LIMIT_S * 1e6:.0f}", "STATUS=starting"]
        assert manager.waiting() == (asked if module == "yaml" else [])
        service.send_signal(signal.SIGHUP)
        service.send_signal(signal.SIGTERM)
        assert service.wait_for_end() == -signal.SIGTERM
    finally:
        service.kill()


def test_the_manager_is_asked_for_time_while_ports_are_started(
    tmp_path: Path, manager: ServiceManager
) -> None:
    environment = blocked_module(tmp_path, "sitecustomize", "'gateway.simulator' in sys.orig_argv")
    config = config_for(tmp_path, 0, more=SIMULATED)
    with Service(config, environment | manager.environment):
        manager.receive_until("STATUS=2 ports, 0 open, 0 in use, 1 absent, 1 not listening yet")
        manager.receive_until(STILL_STARTING)
        manager.receive_until(STILL_STARTING)
    manager.receive_until("STOPPING=1")
    assert "READY=1" not in manager.messages


def test_the_service_is_ready_as_soon_as_its_ports_listen(
    tmp_path: Path, manager: ServiceManager
) -> None:
    environment = blocked_module(tmp_path, "aiohttp")
    config = config_for(tmp_path, 0, more="http: 127.0.0.1:0\n")
    with Service(config, environment | manager.environment):
        manager.receive_until("READY=1")
    manager.receive_until("STOPPING=1")


def test_ports_in_use_are_part_of_the_status(tmp_path: Path, manager: ServiceManager) -> None:
    with Service(config_for(tmp_path, more=SIMULATED), manager.environment) as service:
        tcp_port = int(service.wait_for_line(r'"tcp_port": (\d+)')[1])
        manager.receive_until("STATUS=1 port, 1 open, 0 in use, 0 absent")
        with socket.create_connection(("127.0.0.1", tcp_port)):
            manager.receive_until("STATUS=1 port, 1 open, 1 in use, 0 absent")
        manager.receive_until("STATUS=1 port, 1 open, 0 in use, 0 absent")


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


def test_a_loop_that_is_stuck_no_longer_feeds_the_watchdog(tmp_path: Path) -> None:
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
