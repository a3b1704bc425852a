from __future__ import annotations

import pytest

from gateway.port_document import Histogram, PortCounts


@pytest.mark.parametrize(
    ("value", "counts"),
    [(0.0, [1, 0, 0]), (1.0, [1, 0, 0]), (1.5, [0, 1, 0]), (2.0, [0, 1, 0]), (2.5, [0, 0, 1])],
)
def test_a_value_counts_for_the_first_bound_that_it_does_not_exceed(
    value: float, counts: list[int]
) -> None:
    histogram = Histogram([1.0, 2.0])
    histogram.observe(value)
    assert histogram.counts == counts
    assert histogram.sum == value


def test_a_copy_does_not_change_any_more() -> None:
    histogram = Histogram([1.0])
    histogram.observe(0.5)
    copied = histogram.copy()
    histogram.observe(2.0)
    assert (copied.bounds, copied.counts, copied.sum) == ((1.0,), [1, 0], 0.5)


def test_a_port_begins_with_nothing() -> None:
    counts = PortCounts()
    assert counts.opened == 0
    assert not counts.resets
    assert sum(counts.control_calls.counts) == 0
