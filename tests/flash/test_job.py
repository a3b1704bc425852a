"""One board being flashed, from the port that is taken to the port that is back.

esptool is a program that only says what esptool would; that the real one does what it says is
shown in tests/end_to_end/test_flash.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from gateway.config.document import PortConfig
from gateway.flash.esptool import COMMAND_VARIABLE
from gateway.flash.job import (
    MAX_WAITING_LINES,
    MAX_WAITING_OTHERS,
    Flasher,
    FlashEvents,
    FlashRequest,
    FlashResult,
)
from gateway.flash.plan import FlashImage, FlashOptions, FlashPlan, Outcome
from gateway.flash.store import ImageStores
from gateway.port.port import Port
from gateway.port_document import PortState
from gateway.protocol.reset import RESET, STRAP, Reset, ResetChoice
from tests.support.fake_esptool import HANGS, WRITES, FakeEsptool
from tests.support.pty_board import PtyBoard, port_config, port_of, until

PLAN = FlashPlan((FlashImage(0x1000, 32768, "0" * 64, "bootloader.bin"),))


@dataclass
class Bench:
    """A board, its device, and a flasher."""

    board: PtyBoard
    device: Port
    flasher: Flasher
    folder: Path
    events: list[dict[str, object]]
    config: PortConfig
    plan: FlashPlan = PLAN

    async def flash(self) -> FlashResult:
        async with ImageStores(self.folder).store(self.plan) as store:
            return await self.flasher.flash(
                FlashRequest(
                    self.config, self.device, self.plan, store, self.events.append, "ann@desk"
                )
            )

    def kinds(self) -> list[object]:
        return [event["event"] for event in self.events if event["event"] != "line"]


@asynccontextmanager
async def bench_on(board: PtyBoard, folder: Path, **resets: Any) -> AsyncIterator[Bench]:
    device = port_of(board, resets=ResetChoice(**resets))
    device.start()
    await until(lambda: device.state is PortState.IDLE)
    images = folder / "images"
    images.mkdir()
    names = folder / "by-path"
    names.mkdir()
    flasher = Flasher(names)
    config = replace(port_config(), resets=ResetChoice(**resets))
    try:
        yield Bench(board, device, flasher, images, [], config)
        await until(lambda: device.state is PortState.IDLE)  # whatever has happened
        assert not list(images.iterdir())
    finally:
        await device.stop()


@pytest.fixture
def fake(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    fake = FakeEsptool(tmp_path, getattr(request, "param", WRITES))
    monkeypatch.setenv(COMMAND_VARIABLE, fake.command)
    return fake


async def test_esptool_gets_the_tty_and_its_progress_is_reported(
    tmp_path: Path, fake: FakeEsptool
) -> None:
    with PtyBoard(tmp_path) as board:
        async with bench_on(board, tmp_path) as bench:
            assert await bench.flash() == FlashResult(Outcome.WRITTEN, "", 1)
            tty = board.location.path
            assert bench.kinds() == ["port", "started", "chip", "progress", "progress", "verified"]
            assert {"event": "started", "esptool": "5.6", "tty": tty} in bench.events
            written = [event["written"] for event in bench.events if event["event"] == "progress"]
            assert written == [16384, 32768]
            assert {"event": "line", "text": "Hash of data verified."} in bench.events
            assert fake.arguments[:2] == ["--port", tty]
            assert fake.arguments[-2:] == ["0x1000", "0x1000.bin"]
            # esptool knows best how a board is reset of which nothing else is known.
            assert "default-reset" in fake.arguments
            assert "hard-reset" in fake.arguments
            assert fake.working_folder.parent == bench.folder
            assert RESET not in board.lines


async def test_the_name_that_a_tty_keeps_is_preferred(tmp_path: Path, fake: FakeEsptool) -> None:
    with PtyBoard(tmp_path) as board:
        async with bench_on(board, tmp_path) as bench:
            link = tmp_path / "by-path" / "pci-usb-1"
            link.symlink_to(board.location.path)
            await bench.flash()
            assert fake.arguments[:2] == ["--port", str(link)]


async def test_where_the_operator_says_how_to_reset_the_gateway_does_it(
    tmp_path: Path, fake: FakeEsptool
) -> None:
    with PtyBoard(tmp_path) as board:
        async with bench_on(board, tmp_path, reset=Reset.CLASSIC) as bench:
            assert (await bench.flash()).outcome is Outcome.WRITTEN
            assert fake.arguments.count("no-reset") == 2
            lines = [line for line in board.lines if line in {RESET, STRAP}]
            assert lines == [RESET, STRAP, RESET]


async def test_a_board_that_is_to_stay_in_its_bootloader_is_not_reset(
    tmp_path: Path, fake: FakeEsptool
) -> None:
    with PtyBoard(tmp_path) as board:
        async with bench_on(board, tmp_path, reset=Reset.CLASSIC) as bench:
            bench.plan = replace(PLAN, options=FlashOptions(after="no-reset"))
            assert (await bench.flash()).outcome is Outcome.WRITTEN
            assert [line for line in board.lines if line in {RESET, STRAP}] == [RESET, STRAP]


@pytest.mark.parametrize(
    ("fake", "outcome"),
    [
        ("print('ERROR: A fatal error occurred: no!'); raise SystemExit(2)", Outcome.NO_CONTACT),
        (HANGS.partition("while")[0] + "os.kill(os.getpid(), 9)", Outcome.INCOMPLETE),
    ],
    indirect=["fake"],
)
async def test_what_esptool_fails_with_is_what_comes_of_it(
    tmp_path: Path, fake: FakeEsptool, outcome: Outcome
) -> None:
    with PtyBoard(tmp_path) as board:
        async with bench_on(board, tmp_path) as bench:
            result = await bench.flash()
            assert result.outcome is outcome
            assert result.message
            assert result.verified == 0


@pytest.mark.parametrize("fake", [HANGS], indirect=True)
async def test_a_board_that_is_taken_away_is_incomplete(tmp_path: Path, fake: FakeEsptool) -> None:
    with PtyBoard(tmp_path) as board:
        async with bench_on(board, tmp_path) as bench:
            flashing = asyncio.ensure_future(bench.flash())
            await until(lambda: "progress" in bench.kinds())
            await bench.device.release("for bob", force=True)
            result = await flashing
            assert (result.outcome, result.message) == (Outcome.INCOMPLETE, "released for bob")
            assert not fake.runs
            bench.device.resume()


async def test_a_board_that_does_not_come_back_is_not_reset(
    tmp_path: Path, fake: FakeEsptool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.port.port._LENT_RETURN_S", 0.2)
    with PtyBoard(tmp_path) as board:
        async with bench_on(board, tmp_path) as bench:
            real = bench.device.take_back

            def vanished() -> None:
                board.unplug()
                real()

            monkeypatch.setattr(bench.device, "take_back", vanished)
            result = await bench.flash()
            assert result.outcome is Outcome.NOT_RESET
            assert "not back within 0.2 s" in result.message
            board.plug()


# Events that wait for a client that reads slowly.


def progress(written: int) -> dict[str, object]:
    return {"event": "progress", "written": written}


def line(number: int) -> dict[str, object]:
    return {"event": "line", "text": str(number)}


@pytest.mark.parametrize(
    ("added", "kept"),
    [
        (
            [progress(1), progress(2), line(1), progress(3), progress(4)],
            [progress(2), line(1), progress(4)],
        ),
        (
            [{"event": "chip"}, *map(line, range(MAX_WAITING_LINES + 50))],
            [{"event": "chip"}, *map(line, range(50, MAX_WAITING_LINES + 50))],
        ),
        (
            [{"event": "chip"}] * (MAX_WAITING_OTHERS + 5) + [line(1), progress(1)],
            [{"event": "chip"}] * MAX_WAITING_OTHERS + [line(1)],
        ),
    ],
)
def test_waiting_events_are_bounded(
    added: list[dict[str, object]], kept: list[dict[str, object]]
) -> None:
    events = FlashEvents()
    for event in added:
        events.add(event)
    assert events.take() == kept
    assert events.take() == []


async def test_an_event_wakes_its_reader() -> None:
    events = FlashEvents()
    for _ in range(2):
        waiting = asyncio.ensure_future(events.arrived())
        await asyncio.sleep(0)
        assert not waiting.done()
        events.add(line(1))
        await waiting
        events.take()
