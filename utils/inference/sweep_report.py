"""The results of a sweep, as a table and as a file holds them."""

from typing import Any

from utils.inference.sweep import SweepPoint, Temperature
from utils.metrics.report import by_class


def temperature_name(T: Temperature) -> str:
    """Return a temperature in words, as files of results hold it."""
    return "as trained" if T is None else f"{T:g}"


def sweep_results(points: list[SweepPoint], names: list[str]) -> list[dict[str, Any]]:
    """Return the points as val.py --out writes them; names: of the classes."""
    results = []
    for lam, T, metrics in points:
        results.append({"lam": lam, "T": temperature_name(T), **by_class(metrics, names)})
    return results


def format_sweep(points: list[SweepPoint]) -> str:
    """Format the mAP in %, with a row for each λ and a column for each temperature, and mark the best."""
    best = max(point.metrics["mAP"] for point in points)
    rows = {point.lam: f"{point.lam:8g}" for point in points}
    titles = {}
    for lam, T, metrics in points:
        mark = "*" if metrics["mAP"] == best else " "
        rows[lam] += f"{100 * metrics['mAP']:12.4f} {mark}"
        titles[T] = f"T {temperature_name(T)}".replace("inf", "∞")
    header = "  lambda" + "".join(f"{title:>14}" for title in titles.values())
    note = "* the best on these very images, so not a fair result: choose λ and T on other images"
    return "\n".join(["mAP in %", header, *rows.values(), note])
