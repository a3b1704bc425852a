"""The parts of benchmarks/ that only compute; `make bench` runs the rest."""

from __future__ import annotations

import pytest
import yaml

from tests.tools.benchmarks import targets
from tests.tools.benchmarks.report import BEGIN, END, Metric, Table, percentile, replaced
from tests.tools.benchmarks.rows import FULL, QUICK, rows
from tests.tools.benchmarks.servers import OURS, SERVERS, ser2net_config
from tests.tools.benchmarks.wire import (
    BUFFER_BYTES,
    Payload,
    Uart,
    escaped,
    hello,
    payload,
    unescaped,
)

US, PEER = "us", "peer"


def table() -> Table:
    return Table("T", "says", [Metric("a", "A"), Metric("b", "B", 0)])


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [4.0, 1.0, 3.0, 2.0]
    assert [percentile(values, percent) for percent in (0, 25, 50, 51, 99, 100)] == [
        1.0,
        1.0,
        2.0,
        3.0,
        4.0,
        4.0,
    ]


def test_a_cell_has_median_least_most_and_ratio() -> None:
    measured = table()
    for own, other in ((1.0, 4.0), (3.0, 2.0), (2.0, 4.0)):
        measured.add(US, {"a": own, "b": None})
        measured.add(PEER, {"a": other})
    rows_shown = measured.markdown([US, PEER], PEER).splitlines()[-2:]
    assert rows_shown == [
        "| us | **2.0** (1.0 to 3.0) 0.50x | - |",
        "| peer | **4.0** (2.0 to 4.0) 1.00x | - |",
    ]


def test_a_single_round_has_no_range() -> None:
    measured = table()
    measured.add(US, {"a": 1.0, "b": 0.0})
    assert measured.markdown([US], PEER).endswith("| us | **1.0** | **0** |\n")


def test_a_missing_server_says_what_is_missing() -> None:
    measured = table()
    measured.remarks[PEER] = "not installed"
    assert measured.markdown([PEER], PEER).endswith("| peer | not installed |  |\n")
    assert measured.ratio(US, "a", PEER) is None


def test_only_the_measured_part_of_the_document_is_replaced() -> None:
    document = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert replaced(document, "new\n") == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    with pytest.raises(ValueError, match="lacks"):
        replaced("before", "new")


def test_each_target_is_held_to_its_limit() -> None:
    tables = {"64 ports": table(), "flash": table()}
    for server, cpu, late in ((US, 10.1, 0.0), ("other", 9.9, 512.0), (PEER, 10.0, 0.0)):
        tables["64 ports"].add(server, {"cpu_percent": cpu, "late_bytes": late})
    shown = targets.markdown(tables, [US, "other"], PEER).splitlines()
    assert "| 64 ports: CPU | 1x | **missed:** 1.01x | 0.99x |" in shown
    assert "| 64 ports: late bytes | 0 | 0 | **missed:** 512 |" in shown
    assert "| first accept, s | 0.35 | - | - |" in shown


def test_every_target_is_a_cell_of_what_is_measured() -> None:
    keys = {(row.key, metric.key) for row in rows(FULL) for metric in row.table.metrics}
    assert {(target.table, target.key) for target in targets.TARGETS} <= keys


def test_the_quick_run_is_of_rows_that_there_are() -> None:
    for prefix in QUICK.rows:
        assert [row.key for row in rows(QUICK) if row.key.startswith(prefix)]


def test_a_uart_takes_bytes_as_fast_as_it_sends_them() -> None:
    uart = Uart(1_000_000)  # 10 us a byte
    assert uart.room(5.0) == BUFFER_BYTES
    uart.take(5.0, 1000)
    assert uart.free_at == pytest.approx(5.01)
    assert uart.room(5.0) == BUFFER_BYTES - 1000
    assert uart.room(5.005) == BUFFER_BYTES - 500
    uart.take(5.005, 1000)
    assert uart.free_at == pytest.approx(5.02)
    uart.take(6.0, 100)  # the line was idle meanwhile
    assert uart.free_at == pytest.approx(6.001)


@pytest.mark.parametrize("kind", Payload)
def test_data_survives_the_wire(kind: Payload) -> None:
    data = payload(kind, 10_000)
    assert len(data) == 10_000
    assert data == payload(kind, 10_000)
    assert unescaped(escaped(data, is_telnet=True), is_telnet=True) == data
    assert escaped(data, is_telnet=False) == unescaped(data, is_telnet=False) == data


def test_answers_among_the_data_are_no_data() -> None:
    request, answer = hello(921600)
    assert answer == bytes([255, 250, 44, 101, 0, 0x0E, 0x10, 0, 255, 240])
    assert unescaped(b"a" + request + answer + b"\xff\xff", is_telnet=True) == b"a\xff"


@pytest.mark.parametrize("tuned", [True, False])
def test_ser2net_gets_a_connection_for_each_tty(tuned: bool) -> None:
    text = ser2net_config(["/dev/pts/1", "/dev/pts/2"], [4001, 4002], tuned=tuned)
    # Keys repeat in ser2net's YAML: one connection after the other.
    _, *texts = text.split("connection: ")
    first, second = (yaml.safe_load(f"connection: {each}")["connection"] for each in texts)
    assert first["accepter"].endswith(",127.0.0.1,4001")
    assert second["connector"].endswith(",/dev/pts/2,115200n81,local")
    assert first["options"] == second["options"]
    assert first["options"].get("chardelay", True) is not tuned


def test_servers_have_different_names() -> None:
    assert len({server.name for server in SERVERS}) == len(SERVERS)
    assert not OURS.missing()
