"""`GET /metrics` over ports that are used."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.web import metrics
from tests.support.http_lab import HttpClient, http_client, running
from tests.support.pty_board import LIMIT_S, PtyBoard, serving
from tests.support.tcp_client import GREETING, TcpClient

Values = dict[tuple[str, ...], float]


async def read(client: HttpClient) -> Values:
    """Each sample's value by its name and the values of its labels."""
    answered = await client.get("/metrics")
    assert answered.status == 200
    assert answered.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answered.body.decode())
        for sample in family.samples
    }


async def test_what_a_client_does_is_counted(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served, http_client(running(served)) as client:
            before = await read(client)
            assert before["esp_gateway_sessions_total", "desk"] == 0
            with await TcpClient.connect(served.tcp_port) as tcp_client:
                await tcp_client.receive_wire(GREETING)
                await board.write(b"hello")
                await tcp_client.receive_data(b"hello")
                during = await read(client)
                with await TcpClient.connect(served.tcp_port) as second:
                    await second.receive_to_end()
            await served.until_idle()
            after = await read(client)
    assert during["esp_gateway_clients", "desk", "drives"] == 1
    assert after["esp_gateway_clients", "desk", "drives"] == 0
    assert after["esp_gateway_received_bytes_total", "desk"] == 5
    assert after["esp_gateway_sessions_total", "desk"] == 1
    assert after["esp_gateway_refused_clients_total", "desk", "told"] == 1
    assert after["esp_gateway_device_present", "desk"] == 1


async def test_control_calls_resets_and_reconnects_are_counted(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served, http_client(running(served)) as client:
            count = ("esp_gateway_control_call_duration_seconds_count", "desk")
            calls = (await read(client))[count]
            assert calls >= 1  # it has been opened
            done = asyncio.Event()
            served.device.reset(done.set)
            await done.wait()
            now = await read(client)
            assert now["esp_gateway_resets_total", "app", "desk", "classic"] == 1
            assert now[count] > calls
            assert now["esp_gateway_control_call_duration_seconds_sum", "desk"] > 0
            assert now["esp_gateway_device_reconnects_total", "desk"] == 0
            board.unplug()
            await until(client, ("esp_gateway_device_present", "desk"), 0)
            board.plug()
            await until(client, ("esp_gateway_device_reconnects_total", "desk"), 1)


async def until(client: HttpClient, sample: tuple[str, ...], value: float) -> None:
    deadline = time.monotonic() + LIMIT_S
    while (await read(client))[sample] != value:
        assert time.monotonic() < deadline, f"{sample} does not become {value}"


async def test_a_loop_that_is_held_up_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "SAMPLE_EVERY_S", 0.001)
    async with http_client([]) as client:
        deadline = time.monotonic() + LIMIT_S
        while True:
            time.sleep(0.03)  # noqa: ASYNC251 - as a handler does that should not
            now = await read(client)
            count = now[("esp_gateway_loop_lag_seconds_count",)]
            late = count - now["esp_gateway_loop_lag_seconds_bucket", "0.01"]
            if late:
                break
            assert time.monotonic() < deadline
        assert now[("esp_gateway_loop_lag_seconds_sum",)] >= 0.01 * late


async def test_a_service_without_ports_has_metrics_too() -> None:
    async with http_client([]) as client:
        assert (await read(client))["esp_gateway_info", "1.2.3"] == 1
