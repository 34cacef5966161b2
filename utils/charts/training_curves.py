"""The chart of training runs: loss, mAP and learning rate by epoch."""

from __future__ import annotations  # matplotlib is optional, so its types are only names

import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from utils.charts.figures import PAGE_WIDTH, line_styles, make_figure
from utils.runtime.errors import UserError, reporting_errors
from utils.training.log import read_log

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class RunLog(NamedTuple):
    """A training run by epoch: arrays (N,) of the epochs and what was logged at each."""

    epochs: np.ndarray
    losses: np.ndarray
    mean_aps: np.ndarray  # in %; NaN if no class has positives
    rates: np.ndarray  # of the backbone


def read_run(folder: Path) -> RunLog:
    """Read the log of a run; UserError if it holds no epoch, or an epoch lacks a number."""
    rows = []
    for record in read_log(folder):
        with reporting_errors(f"{folder}/log.jsonl: epoch {record['epoch']} lacks train_loss, mAP or lr"):
            mAP = record.get("mAP")
            percent = math.nan if mAP is None else 100 * mAP  # None: no positives
            backbone_rate, *_ = record["lr"].values()
            rows.append([float(record["epoch"]), float(record["train_loss"]), percent, float(backbone_rate)])
    if not rows:
        raise UserError(f"{folder} holds no log.jsonl with an epoch: name the folder of a run")
    return RunLog(*np.array(rows, float).T)


def draw_curves(runs: dict[str, RunLog]) -> Figure:
    """Draw loss, mAP and the backbone's learning rate by epoch, with a line for the log of each run."""
    figure = make_figure(PAGE_WIDTH, 2.4)
    loss_axis, mAP_axis, rate_axis = figure.subplots(1, 3)
    for (name, run), style in zip(runs.items(), line_styles(len(runs))):
        loss_axis.plot(run.epochs, run.losses, label=name, marker="o", **style)
        mAP_axis.plot(run.epochs, run.mean_aps, marker="o", **style)
        rate_axis.plot(run.epochs, run.rates, marker="o", **style)
    loss_axis.set_ylabel("training loss")
    mAP_axis.set_ylabel("mAP (%)")
    rate_axis.set_ylabel("learning rate (backbone)")
    for axis in (loss_axis, mAP_axis, rate_axis):
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
    mAP_axis.set_ylim(top=min(100, mAP_axis.get_ylim()[1]))
    lowest, highest = rate_axis.dataLim.intervaly
    if 0 < 10 * lowest <= highest:
        rate_axis.set_yscale("log")
        rate_axis.yaxis.set_major_formatter(lambda rate, _: f"{rate:g}")
    lines, labels = loss_axis.get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=min(4, len(runs)))
    return figure
