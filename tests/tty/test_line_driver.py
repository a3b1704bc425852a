import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

import pytest
import structlog
from structlog.testing import LogCapture

from gateway.protocol.line_controller import MIN_RESET_S, MIN_STRAP_S
from gateway.protocol.reset import (
    BOTH,
    IDLE,
    RESET,
    STRAP,
    Lines,
    LinesAtRest,
    Reset,
    ResetChoice,
    Starts,
)
from gateway.protocol.serial_settings import SerialSettings
from gateway.tty.line_driver import LineDriver
from tests.support.pty_board import LoopClock

HOLD_S = 1.0
CLASSIC = ResetChoice(hold_s=HOLD_S)
TOUCH = ResetChoice(Reset.TOUCH_1200)


def nothing() -> None:
    pass


class Port:
    """Takes lines, and has set them when the test says so, or at once."""

    def __init__(self) -> None:
        self.settings = SerialSettings()
        self.usb_ids: tuple[int, int] | None = None
        self.lines: list[Lines] = []
        self.baudrates: list[int] = []
        self.waiting: list[Callable[[], None]] = []
        self.is_quick = True
        self.dropped: list[str] = []

    def set_lines(self, lines: Lines, done: Callable[[], None]) -> None:
        self.lines.append(lines)
        self.waiting.append(done)
        if self.is_quick:
            asyncio.get_running_loop().call_soon(self.let_one_be_set)

    def apply(self, settings: SerialSettings, done: Callable[[SerialSettings], None]) -> None:
        self.settings = settings
        self.baudrates.append(settings.baudrate)
        asyncio.get_running_loop().call_soon(done, settings)

    def drop_unsent(self, reason: str) -> None:
        self.dropped.append(reason)

    def let_one_be_set(self) -> None:
        self.waiting.pop(0)()


class Bench:
    """A line driver on a port of ours, its clock in the test's hands; a context manager."""

    def __init__(self, resets: ResetChoice = CLASSIC) -> None:
        self.clock = LoopClock()
        self.port = Port()
        self.settled: list[str] = []
        self.log = LogCapture()
        log = structlog.wrap_logger(structlog.PrintLogger(), processors=[self.log])
        self.driver = LineDriver(resets, self.port, log)

    async def request(
        self, name: str, *, dtr: bool | None = None, rts: bool | None = None
    ) -> list[str]:
        """Ask, and let the loop turn; returns what has settled so far."""
        self.driver.request(dtr=dtr, rts=rts, settled=lambda: self.settled.append(name))
        await self.clock.advance(0)
        return self.settled

    async def release(self) -> list[str]:
        self.driver.release(lambda: self.settled.append("release"))
        await self.clock.advance(0)
        return self.settled

    def __enter__(self) -> Self:
        self.clock.__enter__()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.clock.__exit__(error_type, error, traceback)

    def events(self, name: str) -> list[str]:
        return [entry["into"] for entry in self.log.entries if entry["event"] == name]


async def test_a_change_settles_when_the_port_has_made_it() -> None:
    with Bench() as bench:
        bench.port.is_quick = False
        assert await bench.request("dtr", dtr=True) == []
        assert bench.port.lines == [STRAP]
        bench.port.let_one_be_set()
        assert bench.settled == ["dtr"]


async def test_what_changes_nothing_settles_at_once() -> None:
    with Bench() as bench:
        assert await bench.request("off", dtr=False) == ["off"]
        assert bench.port.lines == []


async def test_the_client_is_told_what_it_has_asked_for() -> None:
    with Bench() as bench:
        await bench.request("reset", rts=True)
        await bench.clock.advance(MIN_RESET_S)
        await bench.request("dtr", dtr=True)
        assert bench.driver.wanted == BOTH
        assert bench.port.lines == [RESET]


async def test_a_held_edge_settles_at_once_and_is_made_when_its_time_is_over() -> None:
    with Bench() as bench:
        await bench.request("reset", rts=True)
        await bench.clock.advance(MIN_RESET_S)
        assert await bench.request("dtr", dtr=True) == ["reset", "dtr"]
        await bench.clock.advance(HOLD_S - 0.01)
        assert bench.port.lines == [RESET]
        await bench.clock.advance(0.01)
        assert bench.port.lines == [RESET, BOTH]


async def test_the_other_half_of_a_held_edge_makes_it_one_step() -> None:
    with Bench() as bench:
        await bench.request("reset", rts=True)
        await bench.clock.advance(MIN_RESET_S)
        await bench.request("dtr", dtr=True)
        await bench.request("rts", rts=False)
        assert bench.port.lines == [RESET, STRAP]
        await bench.clock.advance(2 * HOLD_S)
        assert bench.port.lines == [RESET, STRAP]


async def test_a_reset_that_is_asked_to_be_short_is_long_enough_and_settles_behind_it() -> None:
    with Bench() as bench:
        await bench.request("reset", rts=True)
        assert await bench.request("run", rts=False) == ["reset"]
        await bench.clock.advance(MIN_RESET_S - 0.001)
        assert bench.port.lines == [RESET]
        await bench.clock.advance(0.001)
        assert bench.port.lines == [RESET, IDLE]
        assert bench.settled == ["reset", "run"]


async def test_a_reset_lasts_from_when_the_line_has_moved_not_from_when_it_was_asked_for() -> None:
    with Bench() as bench:
        bench.port.is_quick = False
        await bench.request("reset", rts=True)
        bench.driver.request(dtr=True, rts=False, settled=lambda: bench.settled.append("strap"))
        # The port is busy with the bytes that were written before.
        await bench.clock.advance(1.0)
        assert bench.port.lines == [RESET]
        bench.port.let_one_be_set()
        await bench.clock.advance(MIN_RESET_S - 0.001)
        assert bench.port.lines == [RESET]
        await bench.clock.advance(0.001)
        assert bench.port.lines == [RESET, STRAP]


async def test_io0_is_low_from_when_its_line_has_moved() -> None:
    with Bench() as bench:
        await bench.request("reset", rts=True)
        await bench.clock.advance(MIN_RESET_S)
        bench.port.is_quick = False
        await bench.request("strap", dtr=True, rts=False)
        await bench.request("off", dtr=False)
        await bench.clock.advance(1.0)
        bench.port.let_one_be_set()
        await bench.clock.advance(MIN_STRAP_S - 0.001)
        assert bench.port.lines == [RESET, STRAP]
        await bench.clock.advance(0.001)
        assert bench.port.lines == [RESET, STRAP, IDLE]


async def test_a_delayed_change_does_not_shift_what_is_asked_for_long_after_it() -> None:
    with Bench() as bench:
        bench.port.is_quick = False
        await bench.request("dtr", dtr=True)
        await bench.clock.advance(1.0)
        bench.port.let_one_be_set()
        bench.port.is_quick = True
        await bench.clock.advance(10.0)
        await bench.request("off", dtr=False)
        await bench.request("reset", rts=True)
        await bench.request("run", rts=False)
        await bench.clock.advance(MIN_RESET_S)
        assert bench.port.lines == [STRAP, IDLE, RESET, IDLE]
        assert bench.settled == ["dtr", "off", "reset", "run"]


async def test_release_from_reset_settles_when_both_lines_are_off() -> None:
    with Bench() as bench:
        await bench.request("reset", rts=True)
        assert await bench.release() == ["reset"]
        await bench.clock.advance(MIN_RESET_S)
        assert bench.settled == ["reset", "release"]
        assert bench.port.lines == [RESET, IDLE]
        assert bench.driver.wanted == IDLE


async def test_what_the_client_still_waits_for_is_done_with_the_release() -> None:
    with Bench() as bench:
        bench.port.is_quick = False
        await bench.request("dtr", dtr=True)
        await bench.release()
        bench.port.let_one_be_set()
        assert bench.settled == []
        bench.port.let_one_be_set()
        assert bench.settled == ["dtr", "release"]


async def test_entering_the_bootloader_settles_when_the_lines_are_off_again() -> None:
    with Bench() as bench:
        bench.driver.enter_bootloader(lambda: bench.settled.append("bootloader"))
        await bench.clock.advance(0)
        await bench.clock.advance(MIN_RESET_S)
        assert bench.settled == []
        await bench.clock.advance(MIN_STRAP_S)
        assert bench.settled == ["bootloader"]
        assert bench.port.lines == [RESET, STRAP, IDLE]
        assert bench.events("board_reset") == ["bootloader"]


async def test_a_reset_by_the_gateway_settles_when_the_board_runs() -> None:
    with Bench() as bench:
        bench.driver.reset(lambda: bench.settled.append("reset"))
        await bench.clock.advance(0)
        await bench.clock.advance(MIN_RESET_S)
        assert bench.settled == ["reset"]
        assert bench.port.lines == [RESET, IDLE]
        assert bench.events("board_reset") == ["app"]


async def test_a_touch_sets_1200_baud_and_gives_the_client_its_own_rate_back() -> None:
    with Bench(TOUCH) as bench:
        bench.port.settings = SerialSettings(baudrate=921600)
        bench.driver.enter_bootloader(lambda: bench.settled.append("bootloader"))
        await bench.clock.advance(0)
        assert bench.port.baudrates == [1200]
        await bench.clock.advance(0.1)
        assert bench.port.lines == [IDLE]
        assert bench.settled == []
        await bench.clock.advance(0.4)
        assert bench.port.baudrates == [1200, 921600]
        assert bench.port.lines == [IDLE, BOTH]
        assert bench.settled == ["bootloader"]


async def test_a_board_that_goes_in_the_middle_of_a_touch_has_its_rate_back() -> None:
    with Bench(TOUCH) as bench:
        bench.driver.enter_bootloader(lambda: bench.settled.append("bootloader"))
        await bench.clock.advance(0)
        bench.driver.board_away()
        await bench.clock.advance(0)
        assert bench.port.baudrates == [1200, 115200]
        assert bench.settled == ["bootloader"]


async def test_a_board_that_comes_back_as_another_device_gets_what_that_needs() -> None:
    with Bench(ResetChoice()) as bench:
        bench.port.usb_ids = (0x303A, 0x0002)
        bench.driver.board_back(nothing)
        bench.driver.reset(lambda: bench.settled.append("as USB-OTG"))
        await bench.clock.advance(0)
        bench.driver.board_away()
        await bench.clock.advance(0)
        assert bench.settled == ["as USB-OTG"]
        bench.port.usb_ids = (0x303A, 0x1001)
        bench.driver.board_back(nothing)
        bench.driver.reset(lambda: bench.settled.append("as USB-Serial/JTAG"))
        await bench.clock.advance(0)
        await bench.clock.advance(0.3)
        assert bench.settled == ["as USB-OTG", "as USB-Serial/JTAG"]
        assert bench.port.lines == [RESET, RESET, IDLE]
        chosen = [entry["reset"] for entry in bench.log.entries if entry["event"] == "reset_chosen"]
        assert chosen == ["usb-otg", "usb-jtag"]


OTG = ResetChoice(Reset.USB_OTG)


async def enter_bootloader(bench: Bench) -> None:
    await bench.request("reset", rts=True)
    await bench.request("strap", dtr=True, rts=False)
    await bench.request("idle", dtr=False)
    for _ in range(40):
        await bench.clock.advance(0.1)


async def hard_reset(bench: Bench) -> None:
    await bench.request("reset", rts=True)
    await bench.request("run", rts=False)
    for _ in range(10):
        await bench.clock.advance(0.1)


async def test_a_board_that_has_left_for_an_entry_is_owed_a_restart_but_not_another_entry() -> None:
    with Bench(OTG) as bench:
        await bench.request("reset", rts=True)
        await bench.request("strap", dtr=True, rts=False)
        await bench.clock.advance(MIN_RESET_S)
        assert bench.events("board_reset") == ["bootloader"]
        bench.driver.board_away()
        await enter_bootloader(bench)
        assert bench.events("board_reset_waits") == []
        await hard_reset(bench)
        assert bench.events("board_reset_waits") == ["app"]
        assert bench.port.dropped == ["the board is to be reset when it is back"]
        bench.port.lines.clear()
        bench.driver.board_back(lambda: bench.settled.append("back"))
        assert "back" not in bench.settled
        await bench.clock.advance(0.3)
        assert bench.settled[-1] == "back"
        assert bench.events("board_reset") == ["bootloader", "app"]
        assert bench.port.lines == [RESET, IDLE, BOTH]  # where this board's lines rest


async def test_a_board_that_has_left_by_itself_is_owed_the_last_that_was_asked_for() -> None:
    with Bench(OTG) as bench:
        bench.driver.board_away()
        await hard_reset(bench)
        await enter_bootloader(bench)
        assert bench.events("board_reset_waits") == ["app", "bootloader"]
        bench.driver.board_back(nothing)
        await bench.clock.advance(0)
        assert bench.events("board_reset") == ["bootloader"]
        bench.driver.board_away()
        bench.driver.board_back(nothing)
        await bench.clock.advance(5.0)
        assert bench.events("board_reset") == ["bootloader"]


async def test_lines_that_are_both_on_come_back_behind_a_reset_that_is_owed() -> None:
    with Bench() as bench:
        bench.driver.board_away()
        await hard_reset(bench)
        await bench.request("both", dtr=True, rts=True)
        bench.port.lines.clear()
        bench.driver.board_back(lambda: bench.settled.append("back"))
        await bench.clock.advance(0)
        await bench.clock.advance(MIN_RESET_S)
        await bench.clock.advance(MIN_STRAP_S)
        assert bench.port.lines == [BOTH, RESET, IDLE, BOTH]
        assert bench.driver.wanted == BOTH
        assert bench.settled[-1] == "back"


@pytest.mark.parametrize(
    ("resets", "lines"),
    [
        (CLASSIC, [STRAP, IDLE]),
        (ResetChoice(Reset.NONE), [STRAP, IDLE]),
        (TOUCH, [IDLE, BOTH]),
        (ResetChoice(Reset.NONE, rest=LinesAtRest(BOTH)), [STRAP, IDLE, BOTH]),
    ],
    ids=["classic", "none", "touch-1200", "none, both on at rest"],
)
async def test_a_client_that_leaves_at_1200_baud_drops_dtr_and_nothing_follows_too_soon(
    resets: ResetChoice, lines: list[Lines]
) -> None:
    with Bench(resets) as bench:
        bench.driver.baudrate_set(1200)
        await bench.request("open", dtr=True, rts=False)
        assert bench.settled == ["open"]
        await bench.release()
        while bench.port.lines[-1:] != [IDLE]:
            await bench.clock.advance(0.01)
        await bench.clock.advance(0.34)
        assert bench.settled == ["open"]
        assert bench.port.lines[-1] == IDLE
        await bench.clock.advance(0.02)
        assert bench.settled == ["open", "release"]
        assert bench.port.lines == lines


async def test_a_client_that_has_not_left_touches_nothing_at_1200_baud() -> None:
    with Bench(ResetChoice(Reset.NONE, rest=LinesAtRest(BOTH))) as bench:
        bench.driver.baudrate_set(1200)
        await bench.request("open", dtr=True, rts=True)
        bench.driver.release(lambda: bench.settled.append("release"), has_left=False)
        assert bench.settled == ["open", "release"]
        assert bench.port.lines == []


async def test_a_rate_that_was_set_for_a_board_that_has_gone_is_no_touch_of_the_next() -> None:
    with Bench(ResetChoice(Reset.NONE, rest=LinesAtRest(BOTH))) as bench:
        bench.driver.baudrate_set(1200)
        await bench.request("open", dtr=True, rts=True)
        bench.driver.board_away()
        await bench.clock.advance(0)
        bench.driver.board_back(lambda: None)
        assert await bench.release() == ["open", "release"]
        assert IDLE not in bench.port.lines


async def test_a_board_that_leaves_at_its_touch_ends_the_pause_after_it() -> None:
    with Bench() as bench:
        bench.driver.baudrate_set(1200)
        await bench.request("open", dtr=True)
        assert await bench.release() == ["open"]
        bench.driver.board_away()
        await bench.clock.advance(0)
        assert bench.settled == ["open", "release"]


async def test_close_takes_the_pause_after_a_touch_back() -> None:
    with Bench() as bench:
        bench.driver.baudrate_set(1200)
        await bench.request("open", dtr=True)
        await bench.release()
        bench.driver.close()
        await bench.clock.advance(1.0)
        assert bench.settled == ["open"]


async def test_a_reset_that_no_line_does_is_logged_and_settles() -> None:
    with Bench(ResetChoice()) as bench:
        bench.port.usb_ids = (0x0483, 0x374B)
        bench.driver.board_back(lambda: None)
        assert bench.driver.problem_of(Starts.APP)
        assert bench.driver.problem_of(Starts.BOOTLOADER)
        bench.driver.reset(lambda: bench.settled.append("reset"))
        bench.driver.enter_bootloader(lambda: bench.settled.append("bootloader"))
        await bench.clock.advance(0)
        assert bench.settled == ["reset", "bootloader"]
        assert bench.port.lines == []
        assert bench.events("board_not_reset") == ["app", "bootloader"]
        assert bench.events("board_reset") == []


@pytest.mark.parametrize(("usb_ids", "warnings"), [(None, 1), ((0x2E8A, 0x000A), 0)])
async def test_a_rest_that_does_not_suit_the_board_is_not_used_and_logged(
    usb_ids: tuple[int, int] | None, warnings: int
) -> None:
    with Bench(ResetChoice(rest=LinesAtRest(STRAP))) as bench:
        bench.log.entries.clear()
        bench.port.usb_ids = (0x2E8A, 0x0005)
        bench.driver.board_back(lambda: None)
        bench.port.usb_ids = usb_ids
        bench.driver.board_back(lambda: None)
        said = [entry for entry in bench.log.entries if entry["event"] == "rest_not_used"]
        assert len(said) == warnings


async def test_nothing_happens_after_close() -> None:
    with Bench() as bench:
        bench.port.is_quick = False
        await bench.request("reset", rts=True)
        await bench.request("run", rts=False)
        bench.driver.close()
        bench.port.let_one_be_set()
        await bench.clock.advance(HOLD_S)
        assert bench.port.lines == [RESET]
        assert bench.settled == []


async def test_close_takes_a_deadline_back() -> None:
    with Bench() as bench:
        await bench.request("reset", rts=True)
        await bench.request("dtr", dtr=True)
        bench.driver.close()
        await bench.clock.advance(2 * HOLD_S)
        assert bench.port.lines == [RESET]


async def test_each_end_of_a_reset_is_logged_with_what_the_board_starts() -> None:
    with Bench() as bench:
        for lines in ((False, True), (True, False), (False, False), (False, True), (False, False)):
            dtr, rts = lines
            await bench.request("any", dtr=dtr, rts=rts)
            await bench.clock.advance(max(MIN_RESET_S, MIN_STRAP_S))
        assert bench.port.lines == [RESET, STRAP, IDLE, RESET, IDLE]
        assert bench.events("board_reset") == ["bootloader", "app"]
