"""What Prometheus reads: by its own parser, and by promtool where that is installed."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from gateway.status import NOT_CONNECTED
from gateway.tty.port_counts import Histogram
from gateway.web.exposition import Exposition, PortSample, PortSamples, ServiceSample
from tests.test_status import DESK

OPEN_METRICS = "application/openmetrics-text; version=1.0.0"
LABELS = 'a "b"\\\n'


def histogram(*values: float) -> Histogram:
    filled = Histogram([0.01, 0.1])
    for value in values:
        filled.observe(value)
    return filled


PORT = PortSample(
    snapshot=replace(
        DESK,
        protocol="rfc2217",
        refused=4,
        not_allowed=5,
        too_many=6,
        not_secured=7,
        other_protocol=8,
        output_dropped_bytes=8,
        input_dropped_bytes=11,
    ),
    usb="10c4:ea60",
    chip="CP2102",
    drivers=1,
    watchers=2,
    opened=3,
    resets={("bootloader", "classic"): 9, ("app", "classic"): 10},
    control_calls=histogram(0.005, 0.05, 0.5),
)


def written(*ports: PortSample, accepted: str = "") -> Exposition:
    """As it is when each port is added by itself."""
    exposition = Exposition(accepted)
    exposition.add(ServiceSample("1.2.3", histogram(0.2)))
    for port in ports:
        exposition.add(PortSamples([port]))
    exposition.add_process()
    return exposition


FAR = replace(
    PORT,
    snapshot=replace(PORT.snapshot, name="far", address="-> lab:7001", state=NOT_CONNECTED),
    is_connected=False,
    dial_failures=12,
)


def text(*ports: PortSample) -> str:
    exposition = written(*ports)
    assert exposition.content_type.startswith("text/plain; version=")
    return exposition.text().decode()


def families(*ports: PortSample) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text(*ports))}


def values(*ports: PortSample) -> dict[tuple[str, ...], float]:
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
        ("esp_gateway_port_info", "CP2102", "/dev/ttyUSB0", "desk", "rfc2217", "10c4:ea60"): 1,
        ("esp_gateway_device_present", "desk"): 1,
        ("esp_gateway_port_listening", "desk"): 1,
        ("esp_gateway_clients", "desk", "drives"): 1,
        ("esp_gateway_clients", "desk", "watches"): 2,
        ("esp_gateway_received_bytes_total", "desk"): 1536,
        ("esp_gateway_sent_bytes_total", "desk"): 12,
        ("esp_gateway_output_dropped_bytes_total", "desk"): 8,
        ("esp_gateway_input_dropped_bytes_total", "desk"): 11,
        ("esp_gateway_sessions_total", "desk"): 3,
        ("esp_gateway_device_reconnects_total", "desk"): 2,
        ("esp_gateway_resets_total", "bootloader", "desk", "classic"): 9,
        ("esp_gateway_resets_total", "app", "desk", "classic"): 10,
        ("esp_gateway_refused_clients_total", "desk", "told"): 4,
        ("esp_gateway_refused_clients_total", "desk", "not_allowed"): 5,
        ("esp_gateway_refused_clients_total", "desk", "too_many"): 6,
        ("esp_gateway_refused_clients_total", "desk", "not_secured"): 7,
        ("esp_gateway_refused_clients_total", "desk", "other_protocol"): 8,
    }
    assert {key: found.get(key) for key in expected} == expected


def test_a_port_that_connects_is_connected_and_does_not_listen() -> None:
    found = values(PORT, FAR)
    assert found["esp_gateway_port_connected", "far"] == 0
    assert found["esp_gateway_dial_failures_total", "far"] == 12
    assert found["esp_gateway_device_present", "far"] == 1
    assert ("esp_gateway_port_listening", "far") not in found
    assert ("esp_gateway_port_connected", "desk") not in found
    assert values(replace(FAR, is_connected=True))["esp_gateway_port_connected", "far"] == 1


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


@pytest.mark.parametrize(
    ("state", "present"),
    [("idle", 1), ("in use", 1), ("absent", 0), ("away", 0), ("broken", 0), ("stopped", 0)],
)
def test_a_board_is_present_when_it_is_there_and_works(state: str, present: int) -> None:
    port = replace(PORT, snapshot=replace(PORT.snapshot, state=state))
    assert values(port)["esp_gateway_device_present", "desk"] == present


def test_a_device_that_was_never_opened_was_not_reconnected() -> None:
    assert values(replace(PORT, opened=0))["esp_gateway_device_reconnects_total", "desk"] == 0


def test_labels_are_what_they_were_whatever_is_in_them() -> None:
    port = replace(PORT, snapshot=replace(PORT.snapshot, device=LABELS), chip=LABELS)
    (sample,) = families(port)["esp_gateway_port_info"].samples
    assert (sample.labels["device"], sample.labels["chip"]) == (LABELS, LABELS)


def test_two_ports_do_not_share_a_sample() -> None:
    other = replace(PORT, snapshot=replace(PORT.snapshot, name="shelf", received_bytes=1))
    found = values(PORT, other)
    assert found["esp_gateway_received_bytes_total", "desk"] == 1536
    assert found["esp_gateway_received_bytes_total", "shelf"] == 1


@pytest.mark.parametrize("accepted", ["", OPEN_METRICS])
def test_ports_may_be_added_in_any_number_of_steps(accepted: str) -> None:
    other = replace(PORT, snapshot=replace(PORT.snapshot, name="shelf"), resets={})
    together = Exposition(accepted)
    together.add(ServiceSample("1.2.3", histogram(0.2)))
    together.add(PortSamples([PORT, other, PORT]))
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
