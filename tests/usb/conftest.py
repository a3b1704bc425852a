"""A machine's USB devices in the tests' hands."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.fake_sysfs import FakeUsb
from tests.support.usb_lab import UsbLab, usb_lab


@pytest.fixture
def usb(tmp_path: Path) -> Iterator[FakeUsb]:
    """A sysfs and a /dev without USB devices."""
    with FakeUsb(tmp_path) as plugged:
        yield plugged


@pytest.fixture
@asynccontextmanager
async def lab(tmp_path: Path) -> AsyncIterator[UsbLab]:
    """A service whose boards the test plugs in and out, not started."""
    async with usb_lab(tmp_path) as made:
        yield made
