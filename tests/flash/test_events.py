"""What waits for a client that reads slowly, and what is dropped."""

from __future__ import annotations

import asyncio

from gateway.flash.events import _MAX_LINES, _MAX_OTHERS, FlashEvents


def progress(written: int) -> dict[str, object]:
    return {"event": "progress", "written": written}


def line(number: int) -> dict[str, object]:
    return {"event": "line", "text": str(number)}


def test_of_progress_in_a_row_the_last_is_kept() -> None:
    events = FlashEvents()
    for event in (progress(1), progress(2), line(1), progress(3), progress(4)):
        events.add(event)
    assert events.take() == [progress(2), line(1), progress(4)]
    assert events.take() == []


def test_the_last_lines_are_kept_and_other_events_stay() -> None:
    events = FlashEvents()
    events.add({"event": "chip"})
    for number in range(_MAX_LINES + 50):
        events.add(line(number))
    kept = events.take()
    assert kept[0] == {"event": "chip"}
    assert kept[1] == line(50)
    assert len(kept) == _MAX_LINES + 1


def test_there_is_an_end_to_other_events_too() -> None:
    events = FlashEvents()
    for _ in range(_MAX_OTHERS + 5):
        events.add({"event": "chip"})
    assert len(events.take()) == _MAX_OTHERS


async def test_an_event_wakes_who_waits() -> None:
    events = FlashEvents()
    waiting = asyncio.ensure_future(events.arrived())
    await asyncio.sleep(0)
    assert not waiting.done()
    events.add(line(1))
    await waiting
    events.take()
    again = asyncio.ensure_future(events.arrived())
    await asyncio.sleep(0)
    assert not again.done()
    again.cancel()
