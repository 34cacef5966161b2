"""The table of the stage engines: a row for each network and cost, a column for each engine."""

from dataclasses import dataclass, field

TEXTBOOK = "textbook"
PLAIN, FOLDED, COMPILED = "ours", "ours folded", "ours compiled"
OURS = (PLAIN, FOLDED, COMPILED)
OTHERS = ("ONNX Runtime", "OpenVINO")
ENGINES = (TEXTBOOK, *OURS, *OTHERS)
# By the key of AMP_DTYPES: the engine that ours is compared with. It may take GOAL times that one's time.
GOAL_ENGINES = {"off": "ONNX Runtime", "bf16": "OpenVINO"}
GOAL = 1.15

COLUMNS = "| {:46} | {:>8} " + "| {:>13} " * len(OURS + OTHERS) + "| {:9} | {:8} | {:28} | {} |"
TITLES = ("network", *ENGINES, "× fastest", "textbook", f"goal: ≤ {GOAL}", "same result; where our time goes")
ENGINE_HEAD = COLUMNS.format(*TITLES) + "\n|" + "---|" * len(TITLES)


@dataclass
class EngineRow:
    """What one cost is in each engine.

    stage: the network, its input and the precision. costs: {engine: cost in `unit`} of those that run here.
    goal_engine: the engine whose time ours is compared with, "" in rows of other costs.
    same: whether all engines computed the same, None in rows that compare nothing. check: how closely they
    agree. shares: {kind of work: its share of the time, from 0 to 1} in the fastest version of ours.
    """

    stage: str
    unit: str
    costs: dict[str, float]
    goal_engine: str = ""
    same: bool | None = None
    check: str = ""
    shares: dict[str, float] = field(default_factory=dict)

    def format(self) -> str:
        """Return the row of the table, in Markdown, with a mark if it misses the goal."""
        costs = [f"{self.costs[engine]:.4g}" if engine in self.costs else "" for engine in ENGINES]
        of_fastest = of_textbook = goal = ""
        if self.goal_engine:  # it is a row of times
            others = [self.costs[engine] for engine in OTHERS if engine in self.costs]
            of_fastest = f"{self.ours / min(others):.2f}" if others else ""
            of_textbook = f"{self.costs[TEXTBOOK] / self.ours:.2f}"
            goal = self.format_goal()
        verdict = {True: "yes: ", False: "NO: ", None: ""}[self.same] + self.check
        shares = ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in self.shares.items())
        remarks = "; ".join(remark for remark in (verdict, shares) if remark)
        return COLUMNS.format(f"{self.stage}, {self.unit}", *costs, of_fastest, of_textbook, goal, remarks)

    @property
    def ours(self) -> float:
        """The lowest cost among our versions."""
        return min(self.costs[engine] for engine in OURS if engine in self.costs)

    def format_goal(self) -> str:
        """Return our time as a share of that of the goal's engine, with a mark if it is too much."""
        if self.goal_engine not in self.costs:
            return ""
        ratio = self.ours / self.costs[self.goal_engine]
        return f"{ratio:.2f} ({self.goal_engine})" + (" missed" if ratio > GOAL else "")
