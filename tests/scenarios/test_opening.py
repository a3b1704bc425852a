"""A port's tty from the start: opened, absent, broken, held by another program, tried again."""

from __future__ import annotations

import ctypes
import errno
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.world import (
    BOTH,
    IDLE,
    Board,
    DeviceAbsentError,
    DeviceError,
    Location,
    Logged,
    OtherProgram,
    State,
    World,
    world,
)

EIO = OSError(errno.EIO, "broken")
DENIED = PermissionError(errno.EACCES, "denied")


def failing(error: Exception) -> Callable[[World], None]:
    """What `world` is to start with: a tty that can't be opened."""
    return lambda w: w.board.calls.fail("open", error)


class Place:
    """Where udev says that the board is: at `board`, else `error` says why it is nowhere."""

    def __init__(self, board: Board | None = None, error: DeviceError | None = None) -> None:
        self.board = board
        self.error = error or DeviceAbsentError("not plugged in")

    def __call__(self) -> Location:
        if self.board is None:
            raise self.error
        return self.board.location


# --- absent and broken


async def test_an_absent_board_is_opened_when_its_tty_appears(tmp_path: Path) -> None:
    async with world(tmp_path, "baudrate: 74880", plugged_in=False) as w:
        assert (w.state, w.status.reason) == (State.ABSENT, "not plugged in")
        assert (w.status.settings, w.status.lines) == ("", "")
        await w.pass_time(4.0)
        assert w.state == State.ABSENT
        w.board.plug()
        await w.until_idle()
        assert w.board.lines == [BOTH, IDLE]
        assert w.status.settings == "74880 8N1"
        assert w.board.baudrate == 74880


async def test_a_tty_that_does_not_open_is_tried_with_growing_pauses_and_logged_once(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, starting=failing(EIO)) as w:
        assert (w.state, w.status.reason) == (State.BROKEN, "Input/output error")
        for tries, wait_s in enumerate([0.25, 0.5, 1.0, 2.0, 4.0, 4.0], 1):
            await w.pass_time(wait_s - 0.01)
            assert (w.board.calls.tries, w.state) == (tries, State.BROKEN)
            await w.pass_time(0.01)
            assert w.board.calls.tries == tries + 1
        assert w.events == ["listen_started", Logged.OPEN_FAILED]
        w.board.calls.mend()
        await w.pass_time(4.0)
        assert w.state == State.IDLE
        # Once it was open, the pauses are short again.
        w.board.unplug()
        await w.until(lambda: w.state != State.IDLE)
        w.board.plug()
        await w.pass_time(0.25)
        assert w.state == State.IDLE


async def test_another_reason_is_logged_again(tmp_path: Path) -> None:
    async with world(tmp_path, plugged_in=False) as w:
        w.board.calls.fail("open", EIO)
        w.board.plug()
        await w.pass_time(4.0)
        assert w.state == State.BROKEN
        reasons = w.said(Logged.OPEN_FAILED, "reason")
        assert reasons == ["not plugged in", "Input/output error"]


async def test_permissions_that_udev_has_not_set_yet_are_waited_for(tmp_path: Path) -> None:
    async with world(tmp_path, waits=False, starting=failing(DENIED)) as w:
        await w.pass_time(0.2)
        assert w.board.calls.tries > 5
        assert w.state == State.OPENING
        w.board.calls.mend()
        await w.pass_time(0.02)
        assert w.state == State.IDLE
        assert Logged.OPEN_FAILED not in w.events


async def test_a_failure_of_another_kind_breaks_the_port_as_well(tmp_path: Path) -> None:
    async with world(tmp_path, starting=failing(RuntimeError("unexpected"))) as w:
        assert (w.state, w.status.reason) == (State.BROKEN, "unexpected")


async def test_a_fresh_tty_is_raw_and_rid_of_its_echo_before_the_lines_move(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, starting=lambda w: w.board.start_echoing_as_fresh()) as w:
        names = [call.name for call in w.board.calls.log]
        assert names == ["open", "exclusive", "settings", "flush", "lines", "settings"]
        assert w.board.calls.named("flush")[0].value == "output"  # nothing of what the board said
        await w.release()
        w.resume()
        await w.until(State.IDLE)
        # What is queued for the board of a tty that was raw is kept.
        assert len(w.board.calls.named("flush")) == 1


async def test_permissions_that_stay_denied_break_the_port(tmp_path: Path) -> None:
    async with world(tmp_path, starting=failing(DENIED)) as w:
        assert w.state == State.BROKEN
        assert w.status.reason == "no permission (is the user in group dialout?)"
        assert w.events.count(Logged.OPEN_FAILED) == 1


async def test_what_came_before_the_open_is_delivered_and_nothing_is_echoed(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, starting=lambda w: _say(w.board)) as w:
        await w.until(lambda: w.recorded == b"early")
        await w.board.write(b"late")
        await w.until(lambda: w.recorded == b"earlylate")
        w.board.read_some(100)
        assert w.board.received == b""


def _say(board: Board) -> None:
    assert board.write_some(b"early") == 5


@pytest.mark.parametrize("plugged_in", [True, False])
async def test_a_client_that_connects_before_the_first_try_waits_for_it(
    tmp_path: Path, plugged_in: bool
) -> None:
    async with world(
        tmp_path,
        plugged_in=plugged_in,
        waits=False,
        starting=lambda w: w.board.calls.hang("open"),
    ) as w:
        await w.until(lambda: w.board.calls.tries)
        client = await w.asks()
        await w.pass_time(0.3)
        assert (w.state, client.has_more()) == (State.OPENING, False)
        w.board.calls.answer()
        if plugged_in:
            await w.until(lambda: w.status.controls == client.name)
        else:
            assert await w.refused(client) == "desk: absent: not plugged in\r\n"


# --- what udev tells


async def test_a_board_that_udev_tells_of_is_opened_without_waiting(tmp_path: Path) -> None:
    place = Place()
    async with world(tmp_path, locate=place) as w:
        assert w.state == State.ABSENT
        place.board = w.board
        w.rescan()
        await w.until(State.IDLE)


async def test_a_rescan_during_a_try_leads_to_another_one(tmp_path: Path) -> None:
    def start(w: World) -> None:
        w.board.calls.fail("open", EIO)
        w.board.calls.hang("open")

    async with world(tmp_path, waits=False, starting=start) as w:
        await w.until(lambda: w.board.calls.tries == 1)
        w.rescan()
        w.board.calls.answer()
        await w.until(lambda: w.board.calls.tries == 2)
        await w.until(State.BROKEN)
        assert w.board.calls.tries == 2


@pytest.mark.parametrize("in_use", [False, True])
async def test_a_board_that_has_gone_is_given_up_before_its_tty_says_so(
    tmp_path: Path, in_use: bool
) -> None:
    place = Place()
    async with world(tmp_path, "grace_s: 0", locate=place, starting=_at(place)) as w:
        if in_use:
            await w.client()
        place.board = None
        w.rescan()
        await w.until(State.ABSENT)
        assert w.status.controls == ""


async def test_a_client_keeps_a_board_that_may_not_be_the_right_one_any_longer(
    tmp_path: Path,
) -> None:
    place = Place(error=DeviceError("two of them"))
    async with world(tmp_path, "grace_s: 0", locate=place, starting=_at(place)) as w:
        client = await w.client()
        place.board = None
        w.rescan()
        await client.settled()
        client.close()
        await w.until(State.BROKEN)
        assert w.status.reason == "two of them"


async def test_a_board_that_comes_back_elsewhere_is_found_there(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    place = Place()
    with Board(tmp_path / "b") as second:
        async with world(tmp_path, "grace_s: 60", locate=place, starting=_at(place)) as w:
            client = await w.client()
            w.board.unplug()
            await w.until(State.OFFLINE)
            await client.send(b"for you")
            place.board = None
            w.rescan()
            place.board = second
            w.rescan()
            await w.until(State.IN_USE)
            await second.reads(b"for you")
            client.close()


async def test_a_port_whose_board_is_another_one_now_is_opened_there(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    place = Place()
    with Board(tmp_path / "b") as second:
        async with world(tmp_path, "grace_s: 0", locate=place, starting=_at(place)) as w:
            place.board = second
            w.rescan()
            await w.until(lambda: "another device is meant now" in w.status.reason)
            await w.until_idle()
            client = await w.client()
            await client.send(b"for the second")
            await second.reads(b"for the second")


async def test_another_board_is_opened_though_the_former_one_is_held(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    place = Place()
    with Board(tmp_path / "b") as second, Board(tmp_path) as first, OtherProgram(first.path):
        place.board = first
        async with world(tmp_path, board=first, locate=place) as w:
            assert w.state == State.BROKEN
            place.board = second
            w.rescan()
            await w.until(State.IDLE)


async def test_a_board_that_keeps_leaving_is_left_alone_for_a_while(tmp_path: Path) -> None:
    place = Place()
    async with world(tmp_path, locate=place, starting=_at(place)) as w:
        for _ in range(11):
            await w.until(State.IDLE)
            place.board = None
            w.rescan()
            await w.until(State.ABSENT)
            await w.until(lambda: w.board.is_free)
            place.board = w.board
            w.rescan()
        assert "it keeps leaving, next try in 5.0 s" in w.status.reason
        await w.pass_time(4.9)
        assert w.events.count(Logged.OPENED) == 11
        await w.pass_time(0.2)
        assert w.state == State.IDLE


def _at(place: Place) -> Callable[[World], None]:
    """Let the board be plugged in from the start."""

    def start(w: World) -> None:
        place.board = w.board

    return start


# --- held by another program


def no_watch_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user has used up fs.inotify.max_user_instances."""
    libc = ctypes.CDLL(None)
    monkeypatch.setattr(libc, "inotify_init1", lambda _: -1)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_args, **_keys: libc)


async def test_a_held_tty_is_opened_once_and_again_a_second_after_it_was_closed(
    tmp_path: Path,
) -> None:
    """Each open raises DTR and RTS under the program that has the board."""
    with Board(tmp_path) as board, OtherProgram(board.path) as holder:
        async with world(tmp_path, board=board) as w:
            assert (w.state, w.status.reason) == (State.BROKEN, "in use by another program")
            for _ in range(60):
                await w.clock.advance(5.0)
            w.rescan()
            await w.pass_time(1.0)
            assert w.board.calls.tries == 1
            assert [call.name for call in w.board.calls.log] == ["open", "close"]
            assert w.said(Logged.OPEN_FAILED, "reason") == ["in use by another program"]
            # The next program of the same command has it.
            with OtherProgram(board.path, locks=False) as next_holder:
                holder.close()
                next_holder.lock()
                for _ in range(10):
                    await w.clock.advance(5.0)
                assert w.board.calls.tries == 2
            await w.pass_time(0.9)
            assert w.board.calls.tries == 2
            await w.pass_time(0.2)
            assert (w.state, w.board.calls.tries) == (State.IDLE, 3)


async def test_clients_of_a_port_that_opens_on_connect_do_not_have_a_held_tty_opened(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, "open: on_connect") as w:
        with OtherProgram(w.board.path):
            for _ in range(3):
                told = await w.refused(await w.asks())
                assert told == "desk: broken: in use by another program\r\n"
                assert w.state == State.RELEASED
            await w.pass_time(60.0)
            assert w.board.calls.tries == 1
        await w.client()
        assert w.board.calls.tries == 2


async def test_a_board_that_comes_back_held_is_opened_when_it_is_free(tmp_path: Path) -> None:
    """ModemManager, for instance, is faster than the gateway."""
    async with world(tmp_path, "grace_s: 60") as w:
        await w.client()
        w.board.unplug()
        await w.until(State.OFFLINE)
        w.board.plug()
        tries = w.board.calls.tries
        with OtherProgram(w.board.path):
            await w.pass_time(1.0)
            assert w.board.calls.tries == tries + 1
        await w.pass_time(0.05)
        assert (w.state, w.board.calls.tries) == (State.IN_USE, tries + 2)


async def test_a_held_tty_that_can_not_be_watched_is_opened_once_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_watch_is_left(monkeypatch)
    with Board(tmp_path) as board, OtherProgram(board.path):
        async with world(tmp_path, board=board) as w:
            for _ in range(29):
                await w.clock.advance(10.0)
            assert w.board.calls.tries == 5


async def test_a_lock_that_ends_without_a_close_is_noticed_after_ten_minutes(
    tmp_path: Path,
) -> None:
    with Board(tmp_path) as board, OtherProgram(board.path) as holder:
        async with world(tmp_path, board=board) as w:
            holder.unlock()
            await w.clock.advance(599.0)
            assert w.board.calls.tries == 1
            await w.clock.advance(2.0)
            assert (w.state, w.board.calls.tries) == (State.IDLE, 2)


# --- a kernel that does not answer


async def test_an_open_that_hangs_is_given_up_and_its_thread_left_behind(tmp_path: Path) -> None:
    async with world(tmp_path, waits=False, starting=lambda w: w.board.calls.hang("open")) as w:
        await w.until(lambda: w.board.calls.tries == 1)
        await w.clock.advance(35.1)
        await w.clock.advance(1.0)  # a loop that was held up that long gives it another second
        await w.until(State.BROKEN)
        assert w.status.reason == "the kernel did not answer for 35 s"
        w.board.calls.answer()
        await w.pass_time(1.0)
        assert w.state == State.IDLE
        await w.until(lambda: len(w.board.calls.named("close")) == 1)  # by the one that hung


@pytest.mark.parametrize("keys", ["", "grace_s: 60"])
async def test_an_absent_board_is_looked_for_on_one_thread(tmp_path: Path, keys: str) -> None:
    async with world(tmp_path, keys) as w:
        client = await w.client()
        n_threads = threading.active_count()
        w.board.unplug()
        await w.until(lambda: w.state != State.IN_USE)
        tries = w.board.calls.tries
        await w.pass_time(3.0)
        early = w.board.calls.tries - tries
        await w.pass_time(3.0)
        late = w.board.calls.tries - tries - early
        if keys:  # boards come back within 3 s
            assert 55 <= early <= 61
            assert 10 <= late <= 15
        assert threading.active_count() <= n_threads
        client.close()
        await w.release(force=True)
        await w.until(lambda: threading.active_count() < n_threads)
