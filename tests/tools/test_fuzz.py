"""A slice of `make fuzz`, floods of one kind, and proof that the fuzzer finds what is planted."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.port.port import Port
from gateway.protocol import telnet
from gateway.protocol.telnet import Telnet
from gateway.session.requests import Requests
from gateway.session.session import Session
from tests.support.fuzz_case import Action, Case, Step, from_text, shrink, to_text
from tests.support.fuzz_generator import CORPUS, floods, load_corpus, make_case
from tests.support.fuzz_world import fuzz_world
from tests.support.telnet_wire import RFC2217_CLIENT
from tests.support.virtual_loop import NothingToWaitForError, VirtualLoop
from tests.tools import fuzz

#: More than any test here needs; `make fuzz` takes 10 MB.
SLICE_BYTES = 250_000
PLANTED_BYTES = 400_000
_LIMIT_S = 60.0

#: Of 2 x 64 KiB in each direction, answers to one more read, and objects on the way.
MAX_SESSION_BYTES = 1_000_000

FLOODS = floods()


def test_streams_of_real_clients_broken_and_clean(tmp_path: Path) -> None:
    assert fuzz.fuzz(seed=0, total_bytes=SLICE_BYTES, limit_s=_LIMIT_S, folder=tmp_path) > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", load_corpus())
def test_each_stream_of_the_corpus_is_served_as_it_is(name: str) -> None:
    stream = load_corpus()[name]
    assert fuzz.play_once([Step(Action.SEND, stream[:4096]), Step(Action.WAIT, number=5.0)]) is None


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.case")), ids=lambda path: path.stem)
def test_what_was_found_once_stays_mended(path: Path) -> None:
    assert fuzz.play_once(from_text(path.read_text())) is None


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_stays_within_its_bounds(name: str) -> None:
    async def play() -> int:
        async with fuzz_world() as world:
            return await world.play_measured(FLOODS[name])

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        assert runner.run(play()) < MAX_SESSION_BYTES


def test_a_case_follows_from_its_seed_and_comes_back_from_its_file() -> None:
    corpus = list(load_corpus().values())
    for seed in range(50):
        case = make_case(seed, corpus)
        assert case == make_case(seed, corpus)
        assert from_text(to_text(case, "two\nlines")) == case


def test_nothing_to_wait_for_is_an_error_and_no_hang() -> None:
    async def wait() -> None:
        await asyncio.get_running_loop().create_future()

    with (
        asyncio.Runner(loop_factory=VirtualLoop) as runner,
        pytest.raises(NothingToWaitForError),
    ):
        runner.run(wait())


# --- planted defects


def planted_defect_is_found(folder: Path) -> str:
    """What the fuzzer says of the defect; its case is kept, fails again and can be shrunk."""
    with pytest.raises(fuzz.FoundError) as found:
        fuzz.fuzz(seed=0, total_bytes=PLANTED_BYTES, limit_s=_LIMIT_S, folder=folder)
    (path,) = folder.iterdir()
    assert f"--replay {path}" in str(found.value)
    assert fuzz.main(["--replay", str(path)]) == 1
    small = from_text(path.with_suffix(".small.case").read_text())
    assert len(small) <= len(from_text(path.read_text()))
    return str(found.value)


def test_an_exception_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(_self: Telnet, verb: bytes, option: bytes) -> None:
        raise ValueError(verb + option)

    monkeypatch.setattr(Telnet, "_negotiate", raises)
    assert "ValueError" in planted_defect_is_found(tmp_path)


def test_a_byte_that_is_lost_at_a_cut_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive_data = Telnet.receive_data

    def forgetful(self: Telnet, data: bytes) -> list[telnet.Event]:
        self._splitter._kept = b""
        return receive_data(self, data)

    monkeypatch.setattr(Telnet, "receive_data", forgetful)
    assert "the board got" in planted_defect_is_found(tmp_path)


def test_lines_that_are_left_on_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    async def clean_up(self: Port, *, resets: bool, has_left: bool) -> None:
        await self.drained()
        self._become_idle()

    monkeypatch.setattr(Port, "_clean_up", clean_up)
    reason = planted_defect_is_found(tmp_path)
    assert "are left at" in reason or "is left on" in reason


def test_output_that_is_no_telnet_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Telnet, "escape", lambda _self, data: data)
    planted_defect_is_found(tmp_path)


def test_a_session_that_never_ends_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "_finish", lambda _self, _reason: None)
    assert "long after its client has left" in planted_defect_is_found(tmp_path)


def test_a_queue_that_does_not_wait_for_the_board_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Requests, "board_busy", lambda _self: None)
    assert fuzz.play_once(FLOODS["data for a board that takes none"]) is not None


def test_a_case_is_made_smaller_while_it_fails() -> None:
    def fails(case: Case) -> bool:
        return any(b"\x07" in step.data for step in case)

    rest = [Step(Action.SEND, b"x" * 50), Step(Action.STALL)] * 20
    case = [*rest, Step(Action.SEND, b"abcdefg\x07hijklmnop"), *rest]
    assert shrink(case, fails) == [Step(Action.SEND, b"\x07")]


def test_a_clean_case_is_judged_by_what_arrives() -> None:
    sent = [Step(Action.SEND, RFC2217_CLIENT + b"a\xff\xffb"), Step(Action.WAIT, number=1.0)]
    assert fuzz.play_once([*sent, Step(Action.EXPECT_BOARD, b"a\xffb")]) is None
    assert fuzz.play_once([*sent, Step(Action.EXPECT_BOARD, b"a\xff\xffb")]) is not None
