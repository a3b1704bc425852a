"""`GET /metrics`: what Prometheus' own parser and promtool read, over ports that are used."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import aiohttp
import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.process_collector import ProcessCollector

from gateway.config.document import HttpConfig, Networks
from gateway.net.access import Rejection
from gateway.port_document import ClientState, Histogram, PortDocument, PortState, UsbDocument
from gateway.protocol.reset import Starts
from gateway.web import http_answers, metrics
from gateway.web.http_access import Policy
from gateway.web.metrics import Exposition, port_metrics, service_metrics
from tests.support.documents import CLIENT, DESK
from tests.support.http_lab import (
    LOOPBACK,
    HttpClient,
    Lab,
    client_of,
    from_address,
    http_client,
    http_server,
    running,
)
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
    assert during["esp_gateway_clients", "desk", "controller"] == 1
    assert after["esp_gateway_clients", "desk", "controller"] == 0
    assert after["esp_gateway_received_bytes_total", "desk"] == 5
    assert after["esp_gateway_sessions_total", "desk"] == 1
    assert after["esp_gateway_rejected_clients_total", "desk", "unavailable"] == 1
    assert after["esp_gateway_device_present", "desk"] == 1


async def test_control_calls_resets_and_reconnects_are_counted(lab: Lab) -> None:
    count = ("esp_gateway_control_call_duration_seconds_count", "desk")
    calls = (await read(lab.client))[count]
    assert calls >= 1  # it has been opened
    await lab.served.port.start_board(Starts.APP)
    now = await read(lab.client)
    assert now["esp_gateway_resets_total", "app", "desk", "classic"] == 1
    assert now[count] > calls
    assert now["esp_gateway_control_call_duration_seconds_sum", "desk"] > 0
    assert now["esp_gateway_device_reconnects_total", "desk"] == 0
    lab.board.unplug()
    await until(lab.client, ("esp_gateway_device_present", "desk"), 0)
    lab.board.plug()
    await until(lab.client, ("esp_gateway_device_reconnects_total", "desk"), 1)


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


async def test_rejected_connections_and_errors_of_requests_are_counted() -> None:
    config = HttpConfig(LOOPBACK, 0, allow=Networks((ip_network("127.0.0.1"),)))
    async with http_server([], "x" * 16, config) as server, client_of(server) as client:
        async with from_address("127.0.0.2", client) as other:
            with pytest.raises(aiohttp.ClientError):
                await other.get("/metrics")
        assert (await client.post("/api/v1/ports/desk/reset")).status == 401
        assert (await client.get("/nowhere")).status == 404
        found = await read(client)
    assert found["esp_gateway_http_errors_total", "401"] == 1
    assert found["esp_gateway_http_errors_total", "404"] == 1
    assert found["esp_gateway_http_rejected_connections_total", "not_allowed"] >= 1
    assert found["esp_gateway_http_rejected_connections_total", "too_many"] == 0


# --- the text


OPEN_METRICS = "application/openmetrics-text; version=1.0.0"
LABELS = 'a "b"\\\n'


def histogram(*values: float) -> Histogram:
    filled = Histogram([0.01, 0.1])
    for value in values:
        filled.observe(value)
    return filled


PORT = replace(
    DESK,
    rejected={
        "unavailable": 4,
        "not_allowed": 5,
        "too_many": 6,
        "not_secured": 7,
        "other_protocol": 8,
    },
    clients=(CLIENT, *2 * (replace(CLIENT, state=ClientState.SUSPENDED),)),
    output_dropped_bytes=8,
    input_dropped_bytes=11,
    reconnects=2,
    resets={("bootloader", "classic"): 9, ("app", "classic"): 10},
    control_calls=histogram(0.005, 0.05, 0.5),
)

FAR = replace(
    PORT,
    name="far",
    connect="lab:7001",
    state=PortState.NOT_CONNECTED,
    peer_connected=False,
    dial_failures=12,
)


def written(*ports: PortDocument, accepted: str = "") -> Exposition:
    """As it is when each port is added by itself."""
    exposition = Exposition(accepted)
    exposition.add(service())
    for port in ports:
        exposition.add(port_metrics([port]))
    exposition.add(ProcessCollector(registry=None).collect())
    return exposition


def service() -> Iterator[Metric]:
    lab = http_answers.Lab("1.2.3", list, dict, Policy(None))
    lab.rejections[Rejection.NOT_ALLOWED] = 13
    lab.errors[401] = 14
    return service_metrics(lab, histogram(0.2))


def text(*ports: PortDocument) -> str:
    exposition = written(*ports)
    assert exposition.content_type.startswith("text/plain; version=")
    return exposition.text().decode()


def families(*ports: PortDocument) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text(*ports))}


def values(*ports: PortDocument) -> dict[tuple[str, ...], float]:
    """Each sample's value by its name and the values of its labels."""
    return {
        (sample.name, *(value for key, value in sorted(sample.labels.items()))): sample.value
        for family in families(*ports).values()
        for sample in family.samples
    }


def test_each_count_of_a_port_has_its_name() -> None:
    found = values(PORT)
    expected = {
        ("esp_gateway_info", "1.2.3"): 1,
        ("esp_gateway_http_rejected_connections_total", "not_allowed"): 13,
        ("esp_gateway_http_errors_total", "401"): 14,
        ("esp_gateway_port_info", "CP2102N", "/dev/ttyUSB0", "desk", "rfc2217", "10c4:ea60"): 1,
        ("esp_gateway_device_present", "desk"): 1,
        ("esp_gateway_port_listening", "desk"): 1,
        ("esp_gateway_clients", "desk", "controller"): 1,
        ("esp_gateway_clients", "desk", "suspended"): 2,
        ("esp_gateway_received_bytes_total", "desk"): 1536,
        ("esp_gateway_sent_bytes_total", "desk"): 12,
        ("esp_gateway_output_dropped_bytes_total", "desk"): 8,
        ("esp_gateway_input_dropped_bytes_total", "desk"): 11,
        ("esp_gateway_sessions_total", "desk"): 3,
        ("esp_gateway_device_reconnects_total", "desk"): 2,
        ("esp_gateway_resets_total", "bootloader", "desk", "classic"): 9,
        ("esp_gateway_resets_total", "app", "desk", "classic"): 10,
        ("esp_gateway_rejected_clients_total", "desk", "unavailable"): 4,
        ("esp_gateway_rejected_clients_total", "desk", "not_allowed"): 5,
        ("esp_gateway_rejected_clients_total", "desk", "too_many"): 6,
        ("esp_gateway_rejected_clients_total", "desk", "not_secured"): 7,
        ("esp_gateway_rejected_clients_total", "desk", "other_protocol"): 8,
    }
    assert {key: found.get(key) for key in expected} == expected


def test_a_port_that_connects_is_connected_and_does_not_listen() -> None:
    found = values(PORT, FAR)
    assert found["esp_gateway_port_connected", "far"] == 0
    assert found["esp_gateway_dial_failures_total", "far"] == 12
    assert found["esp_gateway_device_present", "far"] == 1
    assert ("esp_gateway_port_listening", "far") not in found
    assert ("esp_gateway_port_connected", "desk") not in found
    assert values(replace(FAR, peer_connected=True))["esp_gateway_port_connected", "far"] == 1


def test_histograms_are_cumulative_up_to_infinity() -> None:
    found = values(PORT)
    name = "esp_gateway_control_call_duration_seconds"
    buckets = [found[f"{name}_bucket", bound, "desk"] for bound in ("0.01", "0.1", "+Inf")]
    assert buckets == [1, 2, 3]
    assert found[f"{name}_count", "desk"] == 3
    assert found[f"{name}_sum", "desk"] == pytest.approx(0.555)
    lag = [found["esp_gateway_loop_lag_seconds_bucket", each] for each in ("0.01", "0.1", "+Inf")]
    assert lag == [0, 0, 1]


def test_names_follow_the_conventions() -> None:
    found = families(PORT, FAR)
    units = ("_seconds", "_bytes", "_info", "_present", "_listening", "_connected", "_clients")
    for name, family in found.items():
        if not name.startswith("esp_gateway"):
            continue
        assert family.documentation
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)
        else:
            assert name.endswith(units)
            assert all(not sample.name.endswith("_total") for sample in family.samples)


def test_the_process_itself_is_measured_too() -> None:
    assert {"process_cpu_seconds", "process_resident_memory_bytes", "process_open_fds"} <= set(
        families()
    )


def test_labels_are_what_they_were_whatever_is_in_them() -> None:
    port = replace(PORT, device=LABELS, usb=UsbDocument("10c4:ea60", chip=LABELS))
    (sample,) = families(port)["esp_gateway_port_info"].samples
    assert (sample.labels["device"], sample.labels["chip"]) == (LABELS, LABELS)


def test_two_ports_do_not_share_a_sample() -> None:
    other = replace(PORT, name="shelf", received_bytes=1)
    found = values(PORT, other)
    assert found["esp_gateway_received_bytes_total", "desk"] == 1536
    assert found["esp_gateway_received_bytes_total", "shelf"] == 1


@pytest.mark.parametrize("accepted", ["", OPEN_METRICS])
def test_ports_may_be_added_in_any_number_of_steps(accepted: str) -> None:
    other = replace(PORT, name="shelf", resets={})
    together = Exposition(accepted)
    together.add(service())
    together.add(port_metrics([PORT, other, PORT]))
    apart = written(PORT, other, PORT, accepted=accepted).text()
    [ours, *_] = apart.split(b"# HELP process_")
    assert ours == together.text().removesuffix(b"# EOF\n")


def test_who_asks_for_openmetrics_gets_it() -> None:
    exposition = written(PORT, PORT, accepted=OPEN_METRICS)
    assert exposition.content_type.startswith("application/openmetrics-text")
    text = exposition.text().decode()
    assert text.endswith("# EOF\n")
    assert text.count("# EOF") == 1
    # Its parser insists on all samples of a metric in one place.
    one_each = written(PORT, accepted=OPEN_METRICS).text().decode()
    names = {family.name for family in openmetrics_families(one_each)}  # type: ignore[no-untyped-call]
    assert {"esp_gateway_received_bytes", "esp_gateway_resets"} <= names


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool (Debian's prometheus)")
def test_promtool_has_nothing_to_say() -> None:
    checked = subprocess.run(
        ["promtool", "check", "metrics"],
        input=text(PORT),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
