"""When lines of progress are due, with a clock that the test sets."""

import pytest

from utils.runtime import progress
from utils.runtime.progress import ProgressLines


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """Replace the clock; it shows the only number in the list."""
    shown = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: shown[0])
    return shown


def steps_with_a_line(lines: ProgressLines, clock: list[float], seconds: float, steps: int) -> list[int]:
    """Return the steps after which a line is printed, if each step takes some seconds."""
    printed = []
    for step in range(1, steps + 1):
        clock[0] += seconds
        if lines.due(step):
            lines.printed()
            printed.append(step)
    return printed


def test_the_first_step_has_a_line_and_then_every_so_many(clock):
    assert steps_with_a_line(ProgressLines(100), clock, 0.5, 250) == [1, 100, 200]


def test_slow_steps_have_a_line_once_a_minute(clock):
    assert steps_with_a_line(ProgressLines(100), clock, 25, 8) == [1, 4, 7]


def test_the_first_line_can_wait_a_few_seconds(clock):
    assert steps_with_a_line(ProgressLines(100, first_after=5), clock, 0.01, 400) == [100, 200, 300, 400]
    assert steps_with_a_line(ProgressLines(100, first_after=5), clock, 2, 40) == [3, 33]
