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

    def format(self) -> str:
        """Return the row of the table, in Markdown, with a mark if it misses the target."""
        ratio = target = share = ""
        if self.textbook and self.ours:
            ratio = f"{self.textbook / self.ours:.2f}"
            if self.target:
                missed = self.textbook / self.ours < self.target
                target = f"≥ {self.target:.3g}" + (" missed" if missed else "")
        if self.limit and self.ours:
            share = f"{100 * self.limit / self.ours:.0f} % ({self.limit_name})"
        verdict = {True: "yes: ", False: "NO: ", None: ""}[self.same] + self.check
        costs = format_cost(self.textbook, self.unit), format_cost(self.ours, self.unit)
        return COLUMNS.format(self.stage, *costs, ratio, target, share, verdict)


def format_cost(cost: float | None, unit: str) -> str:
    """Format a cost with its unit, and for milliseconds per image also as images per second."""
    if cost is None:
        return ""
    rate = f" ({1000 / cost:.3g}/s)" if unit == "ms/image" else ""
    return f"{cost:.4g} {unit}{rate}"
