"""What a user may do with a device that others use as well."""

from __future__ import annotations

from pathlib import Path

from gateway.devices.device import DeviceState
from gateway.protocol.reset import BOTH, IDLE
from tests.devices.test_device import attached
from tests.support.pty_board import PtyBoard, device_of, until


async def test_lines_and_break_are_released_while_the_device_is_in_use(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        device = device_of(board)
        device.start()
        await until(lambda: device.state is DeviceState.IDLE)
        user = await attached(device)
        done: list[str] = []
        device.set_lines(lambda: done.append("lines"), dtr=True, rts=True)
        device.set_break(True, lambda: done.append("break"))
        await until(lambda: len(done) == 2)
        assert (device.status.lines, device.status.break_on) == (BOTH, True)
        device.release_lines()
        await until(lambda: board.lines[-1] == IDLE)
        assert (device.status.lines, device.status.break_on) == (IDLE, False)
        assert device.state is DeviceState.IN_USE
        device.detach(user)
        await device.stop()
