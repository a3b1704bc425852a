"""What goes to the service manager's socket, and that nothing goes wrong where there is none."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.sd_notify import Notifier
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
    assert not notifier.is_wanted
    assert not notifier.ready()
    assert notifier.watchdog_s is None


def test_no_environment_means_no_manager() -> None:
    assert not Notifier({}).is_wanted


@pytest.mark.parametrize("name", ["gone", "x" * 200])
def test_a_socket_that_is_not_there_raises_nothing(tmp_path: Path, name: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / name)})
    assert notifier.is_wanted
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
