"""The table that bench.py prints: its rows, and how they look in Markdown."""

from dataclasses import dataclass

COLUMNS = "| {:62} | {:>26} | {:>26} | {:5} | {:20} | {:35} | {} |"
TITLES = ("stage", "textbook", "ours", "ratio", "target", "share of the limit", "same result")
HEAD = COLUMNS.format(*TITLES) + "\n|---|---|---|---|---|---|---|"


@dataclass
class Row:
    """What a stage found. None stands for what was not measured.

    textbook, ours, limit: costs in `unit`, of both versions and of the work that no version can avoid.
    target: the lowest ratio textbook / ours to reach. same: whether both versions computed the same.
    check: what was compared, and how closely it agrees.
    """

    stage: str
    unit: str
    textbook: float | None = None
    ours: float | None = None
    limit: float | None = None
    limit_name: str = ""
    target: float | None = None
    same: bool | None = None
    check: str = ""


def format_row(row: Row) -> str:
    """Format a row of the table, in Markdown, and mark a missed target."""
    ratio = target = share = ""
    if row.textbook and row.ours:
        ratio = f"{row.textbook / row.ours:.2f}"
        if row.target:
            missed = row.textbook / row.ours < row.target
            target = f"≥ {row.target:.3g}" + (" missed" if missed else "")
    if row.limit and row.ours:
        share = f"{100 * row.limit / row.ours:.0f} % ({row.limit_name})"
    verdict = {True: "yes: ", False: "NO: ", None: ""}[row.same] + row.check
    costs = format_cost(row.textbook, row.unit), format_cost(row.ours, row.unit)
    return COLUMNS.format(row.stage, *costs, ratio, target, share, verdict)


def format_cost(cost: float | None, unit: str) -> str:
    """Format a cost with its unit, and for milliseconds per image also as images per second."""
    if cost is None:
        return ""
    rate = f" ({1000 / cost:.3g}/s)" if unit == "ms/image" else ""
    return f"{cost:.4g} {unit}{rate}"
