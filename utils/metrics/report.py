"""Metrics for people and for files: the printed report, and {class: value} instead of lists."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

COLUMNS = ("positives", "predicted", "correct", "precision", "recall", "F1")
TOTALS = ("CP", "CR", "CF1", "OP", "OR", "OF1")


def by_class(metrics: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """Return the metrics of `evaluate` with {class: value} for each list, as files of metrics hold them."""
    return {
        metric: dict(zip(names, value)) if isinstance(value, list) else value
        for metric, value in metrics.items()
    }


def is_metrics_file(path: Path) -> bool:
    """Return whether a file holds metrics, as val.py --out and main.py write them."""
    return path.read_bytes().startswith(b'{\n  "mAP"')


def format_report(metrics: Mapping[str, Any], names: list[str]) -> str:
    """Format the metrics of each class that has positives, then the metrics of all, in %."""
    lines = class_lines(metrics, names)
    without = [name for name, ap in zip(names, metrics["AP"]) if math.isnan(ap)]
    if without:
        lines.append(f"no positives, so left out of mAP, and 0 in CP and CR: {', '.join(without)}")
    lines.append(totals_line("all", metrics))
    lines.append(totals_line("top-3", metrics, suffix="_3"))
    lines.append(f"mAP {100 * metrics['mAP']:.4f} %")
    return "\n".join(lines)


def class_lines(metrics: Mapping[str, Any], names: list[str]) -> list[str]:
    """Return the title of a table, and a line for each class that has positives."""
    columns = [column for column in COLUMNS if column in metrics]  # runs of older versions lack some
    width = max(len("class"), *map(len, names))
    lines = [f"{'class':{width}}      AP" + "".join(f"  {column:>9}" for column in columns)]
    for index, (name, ap) in enumerate(zip(names, metrics["AP"])):
        if not math.isnan(ap):
            cells = [format_cell(metrics[column][index]) for column in columns]
            lines.append(f"{name:{width}}  {100 * ap:6.2f}" + "".join(cells))
    return lines


def format_cell(value: int | float) -> str:
    """Format a count as it is, and a fraction in %."""
    return f"  {value:9}" if isinstance(value, int) else f"  {100 * value:9.2f}"


def totals_line(title: str, metrics: Mapping[str, Any], suffix: str = "") -> str:
    """Return a line with the precision, recall and F1 of all classes; suffix: ends the metrics' names."""
    cells = [f"{name} {100 * metrics[name + suffix]:6.2f}" for name in TOTALS]
    return "  ".join([f"{title:5}", *cells])
