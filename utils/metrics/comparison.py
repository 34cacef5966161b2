"""The difference of two models on the same images, as a table and as a file holds it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from utils.metrics.bootstrap import Interval, Resamples, intervals
from utils.metrics.report import by_class
from utils.runtime.errors import one_line

COMPARED = ("mAP", "CF1", "OF1")


class Comparison(NamedTuple):
    """The metrics of two models, and what the second has more than the first, with 95 % intervals.

    difference, intervals: {metric: value} for the metrics of COMPARED, and for AP a list by class.
    """

    first: Mapping[str, Any]
    second: Mapping[str, Any]
    difference: dict[str, Any]
    intervals: dict[str, Any]


def compare(metrics: Sequence[Mapping[str, Any]], resamples: list[Resamples]) -> Comparison:
    """Compare two models by their metrics and by those of the same resamples of the images."""
    first, second = metrics
    before, after = resamples
    difference: dict[str, Any] = {name: second[name] - first[name] for name in COMPARED}
    difference["AP"] = [b - a for a, b in zip(first["AP"], second["AP"])]
    differences = {name: after[name] - before[name] for name in before}
    return Comparison(first, second, difference, intervals(differences))


def comparison_results(comparison: Comparison, names: list[str], files: list[Path]) -> dict[str, Any]:
    """Return a comparison as utils/evaluation.py --out writes it; names: of the classes."""
    first, second = (
        {"file": str(file), **by_class(metrics, names)}
        for file, metrics in zip(files, (comparison.first, comparison.second))
    )
    return {
        "difference": by_class(comparison.difference, names),
        "intervals": by_class(comparison.intervals, names),
        "a": first,
        "b": second,
    }


def is_comparison_file(path: Path) -> bool:
    """Return whether a file holds a comparison, as utils/evaluation.py --out writes it."""
    return path.read_bytes().startswith(b'{\n  "difference"')


def format_comparison(comparison: Comparison, names: list[str]) -> str:
    """Format the AP of the classes that differ beyond their interval, then the metrics of all, in %."""
    rows = []
    for index, name in enumerate(names):
        bounds = comparison.intervals["AP"][index]
        if bounds.low > 0 or bounds.high < 0:
            values = [metrics["AP"][index] for metrics in (comparison.first, comparison.second)]
            rows.append((one_line(name), *values, bounds))
    note = "AP of the classes that differ beyond their 95 % interval, and metrics of all, in %"
    if not rows:
        note = "no AP of a class differs beyond its 95 % interval; metrics of all classes, in %"
    for metric in COMPARED:
        values = [metrics[metric] for metrics in (comparison.first, comparison.second)]
        rows.append((metric, *values, comparison.intervals[metric]))

    width = max(len(title) for title, *_ in rows)
    lines = [note, f"{'':{width}}       a       b  difference  95 % interval"]
    for title, a, b, bounds in rows:
        numbers = f"{100 * a:6.2f}  {100 * b:6.2f}  {100 * (b - a):+10.2f}"
        lines.append(f"{title:{width}}  {numbers}  {format_interval(bounds)}")
    bounds = format_interval(comparison.intervals["mAP"])
    lines.append(f"mAP difference {100 * comparison.difference['mAP']:+.2f} (95 % interval {bounds})")
    return "\n".join(lines)


def format_interval(bounds: Interval) -> str:
    """Format an interval of fractions in %."""
    return f"{100 * bounds.low:.2f} to {100 * bounds.high:.2f}"
