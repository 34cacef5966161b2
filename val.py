"""Evaluate a checkpoint: a released one, or any that main.py wrote.

python val.py --num_heads 1 --lam 0.1 --dataset voc07 --num_cls 20 --load_from MODEL.pth
"""

if __name__ == "__main__":
    import utils.runtime.quiet_interrupt  # first, see there

import argparse
from typing import Any

import utils.runtime.passive_waiting  # before torch

import numpy as np

import utils.runtime.torchvision_alone  # noqa: F401  before torchvision
from utils.command_line import options
from utils.command_line.load_from import complete_options, load_model_for, options_in_effect
from utils.command_line.summary import summary
from utils.command_line.sweep_option import axis, sweep_axes
from utils.data.datasets import DEFAULT_DATASET, dataset_spec
from utils.data.labels import Labels, fingerprint
from utils.data.loaders import EvaluationLoader
from utils.data.samples import LabelledImages, load_split
from utils.inference.evaluation_page import write_evaluation_page
from utils.inference.html_page import PageSettings, check_page_folder
from utils.inference.network_metrics import LogitScores, evaluate_scores
from utils.inference.outputs import compute_outputs, with_tta
from utils.inference.predictor import LabelSettings, Predictor
from utils.inference.speed_up import speed_up
from utils.inference.sweep import LogitTerms, compute_terms, sweep
from utils.inference.sweep_report import format_sweep, sweep_results
from utils.metrics.blocks import Scores
from utils.metrics.report import by_class, format_report, is_metrics_file
from utils.metrics.score_files import is_scores_file, write_scores
from utils.metrics.thresholds import read_thresholds, threshold
from utils.runtime import distributed, interrupt
from utils.runtime.arguments import Parser, given_path
from utils.runtime.device import choose_device, set_up_device
from utils.runtime.errors import UserError
from utils.runtime.files import nan_to_none, write_json
from utils.runtime.output_checks import check_file, check_replaceable
from utils.runtime.processes import RANK
from utils.runtime.script import run_script
from utils.weights.sources import find_published


def main() -> None:
    parser, given = parse_args()
    spec = dataset_spec(given.dataset)
    device = choose_device(given.device, given.amp, given.compile)
    set_up_device(device)
    distributed.suggest_torchrun(device)
    distributed.connect(device)
    predictor = load_model_for(given)
    report_lam(given, predictor)
    args = options_in_effect(given, predictor)
    thresholds = read_thresholds(args.threshold, predictor.classes)
    predictor.to(device)
    dataset = load_split(spec, args.split, args.img_size, max_pixels=args.max_pixels)
    loader = EvaluationLoader(dataset, args.batch_size, args.num_workers, device)
    print(summary(parser, args))
    print(f"{len(dataset)} {args.split} images, on {device}")
    report_other_labels(predictor, dataset.labels)
    predictor = speed_up(predictor, args, len(dataset))

    scores, terms = compute_scores(args, predictor, loader)
    metrics = evaluate_scores(scores, dataset.labels, thresholds)
    print(format_report(metrics, predictor.classes))
    results = by_class(metrics, predictor.classes)
    if terms is not None:
        points = sweep(terms, dataset.labels, args.sweep, thresholds)
        print(f"\n{format_sweep(points)}")
        results["sweep"] = sweep_results(points, predictor.classes)
    if RANK == 0:
        write_files(args, results, scores, dataset.labels, predictor.classes)
    distributed.disconnect()
    if args.html and RANK == 0:
        settings = page_settings(args, predictor, thresholds, metrics["mAP"])
        write_page(args, settings, predictor, dataset, scores)


def compute_scores(
    args: argparse.Namespace, predictor: Predictor, loader: EvaluationLoader
) -> tuple[Scores, LogitTerms | None]:
    """Return the scores (N, C) of all images, and with --sweep the terms of their logits, else None."""
    network = predictor.runner
    device = predictor.device
    scores: Scores
    terms = None
    with interrupt.deferring_signals("stopping"):
        if args.sweep:
            terms = compute_terms(network, loader, device, args.sweep.temperatures, args.amp, args.tta)
            scores = terms.scores(args.lam, None)
        else:
            logits = compute_outputs(network, loader, device, args.amp, with_tta(network, args.tta))
            scores = LogitScores(logits)
        interrupt.stop_if_asked()
    return scores, terms


def write_files(
    args: argparse.Namespace, results: dict[str, Any], scores: Scores, labels: Labels, classes: list[str]
) -> None:
    """Write the files that --out and --save_scores name; scores: (N, C)."""
    if args.out:
        write_json(args.out, nan_to_none(results))
        print(f"written to {args.out}")
    if args.save_scores:
        write_scores(args.save_scores, scores, labels, classes)
        print(f"scores written to {args.save_scores}")


def write_page(
    args: argparse.Namespace,
    settings: PageSettings,
    predictor: Predictor,
    dataset: LabelledImages,
    scores: Scores,
) -> None:
    """Write the page of --html; scores: (N, C)."""
    label_settings = LabelSettings(args.batch_size, args.num_workers, amp=args.amp, with_maps=True)
    with interrupt.deferring_signals("stopping"):
        write_evaluation_page(args.html, settings, predictor, dataset, scores, label_settings)
    print(f"written to {args.html}")


def page_settings(
    args: argparse.Namespace, predictor: Predictor, thresholds: np.ndarray, mean_ap: float
) -> PageSettings:
    """Return what the page of --html is made with; thresholds: (C,). mean_ap: the mAP, in [0, 1]."""
    return PageSettings(
        title=f"{args.dataset} {args.split}, {args.load_from}: mAP {100 * mean_ap:.2f} %",
        classes=predictor.classes,
        thresholds=thresholds,
        top=None,
        has_true_labels=True,
        attention=predictor.has_attention,
    )


def report_lam(given: argparse.Namespace, predictor: Predictor) -> None:
    """Print which λ is used if the file does not store one, or stores another; given: the options."""
    published = find_published(given.load_from)
    trained = published.lam if published else predictor.config.get("lam")
    used = predictor.options["lam"]
    if trained is None and given.lam is None:
        print(f"{given.load_from} stores no lambda: using {used}; set another with --lam")
    elif trained not in (None, used):
        print(f"this file was trained with lambda {trained:g}; evaluating with {used:g}")


def report_other_labels(predictor: Predictor, labels: Labels) -> None:
    """Print a line if the network was trained with other label files than those of these labels."""
    known = str(predictor.config.get("labels") or "").split()
    if known and fingerprint(labels) not in known:
        print(f"this file was trained with other label files, of --dataset {predictor.config.get('dataset')}")


def parse_args() -> tuple[Parser, argparse.Namespace]:
    parser = Parser(description="Evaluate a checkpoint.")
    group = parser.add_argument_group("data")
    options.add_dataset(group, from_checkpoint=True)
    options.add_image_options(group, from_checkpoint=True)
    options.add_loader_options(group, batch_help="images per step and process")
    splits = ["train", "val", "test"]
    group.add_argument("--split", choices=splits, default="test", help="images to evaluate on")
    group = parser.add_argument_group("model")
    options.add_model_options(group, from_checkpoint=True)
    options.add_checkpoint(group)
    options.add_list_checkpoints(group)
    options.add_tta(group)
    group = parser.add_argument_group("run")
    options.add_run_options(group, chooses_compile=True)
    threshold_help = "lowest score that is a prediction, or a .json file with one per class"
    group.add_argument("--threshold", type=threshold, default=0.5, metavar="NUMBER|FILE", help=threshold_help)
    group.add_argument("--out", type=given_path, metavar="FILE", help="write the metrics to this JSON file")
    group.add_argument("--save_scores", type=given_path, metavar="FILE", help="write scores to this .npz")
    html_help = "make this folder a page that a browser opens, with the worst mistakes of each class first"
    group.add_argument("--html", type=given_path, metavar="FOLDER", help=html_help)
    sweep_help = "evaluate other values too, in the same pass: lam=0:1:0.1 [T=1,2,4,inf]"
    group.add_argument("--sweep", type=axis, nargs="+", metavar="AXIS", help=sweep_help)
    args = complete_options(parser.parse_args())
    args.dataset = args.dataset or DEFAULT_DATASET
    if args.sweep:
        args.sweep = sweep_axes(args.sweep)
    check_file(args.out, "--out")
    check_file(args.save_scores, "--save_scores", ".npz")
    if args.out and args.out == args.save_scores:
        raise UserError(f"--out and --save_scores are both {args.out}: name two files")
    check_replaceable(args.out, "--out", is_metrics_file, "val.py")
    check_replaceable(args.save_scores, "--save_scores", is_scores_file, "val.py")
    if args.html:
        check_page_folder(args.html, [args.out, args.save_scores])
    return parser, args


if __name__ == "__main__":
    run_script(main)
