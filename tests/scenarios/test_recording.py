"""What is kept of a board's output, in memory and in a file."""

from __future__ import annotations

from pathlib import Path

from tests.support.world import world


async def test_output_is_kept_whether_a_client_is_there_or_not(tmp_path: Path) -> None:
    log_file = tmp_path / "desk.log"
    async with world(tmp_path, f"record_kib: 1, log_file: {log_file}") as w:
        await w.board.write(b"x" * 2000 + b"boot\n")
        await w.until(lambda: w.status.received_bytes == 2005)
        client = await w.client()
        await w.board.write(b"more\n")
        await client.receive_data(b"more\n")
        assert w.recorded == (b"x" * 2000 + b"boot\nmore\n")[-1024:]
        client.close()
        await w.until_idle()
    lines = log_file.read_bytes().splitlines()
    assert [line.split(b" ", 2)[2][-4:] for line in lines] == [b"boot", b"more"]


async def test_output_that_came_before_the_tty_closed_is_kept_over_a_release(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as w:
        await w.board.write(b"before")
        await w.until(lambda: w.recorded == b"before")
        await w.release()
        w.resume()
        await w.until_idle()
        await w.board.write(b" after")
        await w.until(lambda: w.recorded == b"before after")
