"""Evaluate a checkpoint: a released one, or any that main.py wrote.

python val.py --num_heads 1 --lam 0.1 --dataset voc07 --num_cls 20 --load_from MODEL.pth
"""

import argparse
import functools

import utils.runtime.passive_waiting  # noqa: F401  before torch

import numpy as np
import torch

from pipeline.network import Network
from utils.checkpoint import load_model_for
from utils.commands import options
from utils.commands.summary import summary
from utils.data.datasets import dataset_spec
from utils.data.label_files import fingerprint
from utils.data.loaders import EvaluationLoader
from utils.data.samples import load_split
from utils.inference.outputs import compute_outputs, evaluate_scores, logit_terms, sigmoid, with_tta
from utils.inference.sweep import axis, format_sweep, sweep
from utils.metrics.report import by_class, format_report
from utils.metrics.score_files import write_scores
from utils.metrics.thresholds import read_thresholds, threshold
from utils.runtime import distributed, interrupt
from utils.runtime.cli import Parser, UserError, given_path, run_script
from utils.runtime.device import choose_device
from utils.runtime.files import check_file, nan_to_none, write_json


def main() -> None:
    parser, args = parse_args()
    spec = dataset_spec(args.dataset)
    model = load_checked_model(args)
    thresholds = read_thresholds(args.threshold, model.classes)
    device = choose_device(args.device, args.amp, args.compile)
    distributed.connect(device)
    if args.compile:
        model.features = torch.compile(model.features)
    model.to(device, memory_format=torch.channels_last)
    dataset = load_split(spec, args.split, args.img_size, max_pixels=args.max_pixels)
    loader = EvaluationLoader(dataset, args.batch_size, args.num_workers, device)
    print(summary(parser, args))
    print(f"{len(dataset)} {args.split} images, on {device}")
    if (known := model.config.get("labels")) and fingerprint(dataset.labels) not in str(known):
        print(f"this file was trained with other label files, of --dataset {model.config.get('dataset')}")

    axes = {"T": [None]} | dict(args.sweep or [])
    terms = functools.partial(logit_terms, model, temperatures=[None, *axes["T"]])  # None: as trained
    forward = with_tta(terms if args.sweep else model, args.tta)
    with interrupt.deferring_signals("stopping"):
        outputs = compute_outputs(model, loader, device, args.amp, forward)
    # With a sweep: the mean scores, those attended as trained, and those attended with each T.
    logits = outputs[:, 0] + args.lam * outputs[:, 1] if args.sweep else outputs
    scores, labels = sigmoid(logits), dataset.labels
    metrics = evaluate_scores(scores, labels, thresholds)
    print(format_report(metrics, model.classes))
    results = by_class(metrics, model.classes)
    if args.sweep:
        points = sweep(np.delete(outputs, 1, axis=1), labels, axes["lam"], axes["T"], thresholds)
        print(f"\n{format_sweep(points)}")
        results["sweep"] = [by_class(point, model.classes) for point in points]
    if args.out and distributed.RANK == 0:
        write_json(args.out, nan_to_none(results))
        print(f"written to {args.out}")
    if args.save_scores and distributed.RANK == 0:
        write_scores(args.save_scores, scores, labels, model.classes)
        print(f"scores written to {args.save_scores}")
    distributed.disconnect()


def load_checked_model(args: argparse.Namespace) -> Network:
    """Return the checkpoint's network, and fill in options from it; UserError if it does not fit them."""
    model = load_model_for(args)
    if args.lam is None and not model.config:
        print(f"{args.load_from} stores no lambda: using {model.options['lam']}; set another with --lam")
    elif args.lam not in (None, model.config.get("lam", args.lam)):
        print(f"this file was trained with lambda {model.config['lam']:g}; evaluating with {args.lam:g}")
    vars(args).update(model.options, normalize=model.normalization)
    return model


def parse_args() -> tuple[Parser, argparse.Namespace]:
    parser = Parser(description="Evaluate a checkpoint.")
    group = parser.add_argument_group("data")
    options.add_dataset(group)
    options.add_image_options(group, from_checkpoint=True)
    options.add_loader_options(group, batch_help="images per step and process")
    splits = ["train", "val", "test"]
    group.add_argument("--split", choices=splits, default="test", help="images to evaluate on")
    group = parser.add_argument_group("model")
    options.add_model_options(group, from_checkpoint=True)
    options.add_checkpoint(group)
    options.add_tta(group)
    group = parser.add_argument_group("run")
    options.add_run_options(group)
    least = "lowest score that is a prediction, or a .json file with one per class"
    group.add_argument("--threshold", type=threshold, default=0.5, metavar="NUMBER|FILE", help=least)
    group.add_argument("--out", type=given_path, metavar="FILE", help="write the metrics to this JSON file")
    group.add_argument("--save_scores", type=given_path, metavar="FILE", help="write scores to this .npz")
    sweep_help = "evaluate other values too, in the same pass: lam=0:1:0.1 [T=1,2,4,inf]"
    group.add_argument("--sweep", type=axis, nargs="+", metavar="AXIS", help=sweep_help)
    args = parser.parse_args()
    if args.sweep and sorted(name for name, _ in args.sweep) not in (["lam"], ["T", "lam"]):
        raise UserError("--sweep takes lam= once, and T= at most once, as in --sweep lam=0:1:0.1 T=1,2,4,inf")
    check_file(args.out, "--out")
    check_file(args.save_scores, "--save_scores", ".npz")
    if args.out and args.out.exists():
        content = args.out.read_bytes() if args.out.is_file() else b"no file"
        if content and not content.startswith(b'{\n  "mAP"'):
            raise UserError(f"--out {args.out} exists and is not from val.py: name another file")
    return parser, args


if __name__ == "__main__":
    run_script(main)
