"""Evaluate a checkpoint: a released one, or any that main.py wrote.

python val.py --num_heads 1 --lam 0.1 --dataset voc07 --num_cls 20 --load_from MODEL.pth
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pipeline.csra import TEMPERATURES, logit_terms
from pipeline.models import read_architecture, restore
from utils.checkpoint import load_checkpoint, load_weights
from utils.datasets import IGNORED, DatasetSpec, LabelledImages, dataset_spec, load_split, make_loader
from utils.evaluation import format_report
from utils.inference import augmented, evaluate_scores, predict, sigmoid
from utils.label_files import class_names
from utils.runtime import distributed, interrupt
from utils.runtime.cli import (
    Parser,
    UserError,
    add_data_arguments,
    add_run_arguments,
    add_tta,
    blaming,
    given_path,
    number,
    run,
)
from utils.runtime.device import check_compiler, choose_device
from utils.runtime.files import check_file, check_folder, plain, read_json, whole_file
from utils.sweep import axis, format_sweep, sweep


def main() -> None:
    args = parse_args()
    spec = dataset_spec(args.dataset)
    classes = class_names(spec.folder)
    checkpoint = load_checkpoint(args.load_from)
    if args.out:
        check_folder(args.out.parent, "--out")
        if args.out.exists() and not holds_metrics(args.out):
            raise UserError(f"--out {args.out} is there already and not from val.py: name another file")
    if args.save_scores:
        check_file(args.save_scores, "--save_scores")
    model = build_model(args, checkpoint, classes, spec)
    device = choose_device(args.device, args.amp)
    distributed.connect(device)
    if args.compile:
        check_compiler(device)
        model.features = torch.compile(model.features)
    model.to(device, memory_format=torch.channels_last)
    dataset = load_split(spec, args.split, args.img_size, max_pixels=args.max_pixels)
    loader = make_loader(dataset, args.batch_size, args.num_workers, device)
    shown = {name: value for name, value in vars(args).items() if name != "sweep"}
    print("\n".join(f"{name:12} {value}" for name, value in shown.items()))
    print(f"{len(dataset)} images, on {device}")

    axes = {"T": [None]} | dict(args.sweep or [])
    with interrupt.listening("stopping"):
        if args.sweep:
            terms = predict_terms(model, loader, device, spec, args, axes["T"])
            logits = terms[:, 0] + args.lam * terms[:, 1]
        else:
            logits = predict(model, loader, device, spec, args.amp, augmented(model, args.tta))
    scores = sigmoid(logits)
    metrics = evaluate_scores(scores, dataset.targets)
    print(format_report(metrics, classes, dataset.positives()))
    results = {**metrics, "AP": dict(zip(classes, metrics["AP"]))}
    if args.sweep:
        results["sweep"] = sweep(np.delete(terms, 1, axis=1), dataset.targets, axes["lam"], axes["T"])
        print(f"\n{format_sweep(results['sweep'])}")
    if distributed.RANK == 0:
        write_results(args, results, scores, dataset, classes)
    distributed.disconnect()


def predict_terms(
    model: nn.Module,
    loader: DataLoader,
    device: torch.device,
    spec: DatasetSpec,
    args: argparse.Namespace,
    temperatures: list[float | None],
) -> np.ndarray:
    """Return what logits are made of, (N, 2 + T, C): mean scores, attended ones as trained and for each T."""

    def forward(images: Tensor) -> Tensor:
        return logit_terms(model.classifier, model.features(images), [None, *temperatures])

    return predict(model, loader, device, spec, args.amp, augmented(forward, args.tta))


def write_results(
    args: argparse.Namespace, results: dict, scores: np.ndarray, dataset: LabelledImages, classes: list[str]
) -> None:
    """Write the files that --out and --save_scores ask for."""
    if args.out:
        with whole_file(args.out) as file:
            json.dump(plain(results), file, indent=2)
        print(f"written to {args.out}")
    if args.save_scores:
        with whole_file(args.save_scores, "wb") as file:
            np.savez_compressed(
                file,
                scores=scores,
                targets=(dataset.targets == 1).astype(np.int8),
                ignore=dataset.targets == IGNORED,
                names=np.array(classes),
                paths=np.char.decode(dataset.paths, "utf-8", "surrogateescape"),
            )
        print(f"scores written to {args.save_scores}")


def holds_metrics(path: Path) -> bool:
    """Tell whether a file may be replaced by metrics: one written earlier, or an empty one."""
    try:
        return path.is_file() and (path.stat().st_size == 0 or "mAP" in read_json(path))
    except (UserError, TypeError):
        return False


def build_model(
    args: argparse.Namespace, checkpoint: dict, classes: list[str], spec: DatasetSpec
) -> nn.Module:
    """Return the network that the checkpoint holds, and set the arguments left out to what it says.

    Raises UserError where an argument or the data set says otherwise.
    """
    weights, config = checkpoint["model"], checkpoint["config"]
    with blaming(args.load_from):
        held = read_architecture(weights, config.get("model"))
    for name, value in held.items():
        if getattr(args, name) not in (None, value):
            raise UserError(
                f"--{name} {getattr(args, name)}: {args.load_from} holds "
                f"{', '.join(f'{n} {v}' for n, v in held.items())}; leave the option out"
            )
        setattr(args, name, value)
    names = checkpoint.get("classes", classes)
    if args.num_cls != len(classes) or names != classes:
        pairs = enumerate(zip(names, classes), start=1)
        first = next((f" (class {i} is {a}, not {b})" for i, (a, b) in pairs if a != b), "")
        raise UserError(
            f"{args.load_from} holds {args.num_cls} classes{first}, --dataset {args.dataset} has "
            f"{len(classes)}: name the data set it was trained for"
        )
    if args.lam is None and not config:
        print(f"{args.load_from} does not say its lambda: taking the usual one, unless --lam gives another")
    with blaming(args.load_from):
        model, weights, settings = restore(weights, config, args.lam, args.img_size, spec.img_size)
    args.lam, args.img_size = settings["lam"], settings["img_size"]
    load_weights(model, weights, str(args.load_from))
    return model


def parse_args() -> argparse.Namespace:
    """Parse the arguments; those left out are read off the checkpoint later."""
    parser = Parser(description="Evaluate a checkpoint.")
    off_file = "[default: read off the checkpoint]"

    group = add_data_arguments(parser, "as trained, else the data set's", "images of a step, each process's")
    group.add_argument("--split", choices=["test", "train"], default="test", help="[default: %(default)s]")

    group = parser.add_argument_group("model")
    group.add_argument("--load_from", type=given_path, required=True, metavar="FILE", help="the checkpoint")
    group.add_argument("--model", help=f"checked {off_file}")
    group.add_argument("--num_heads", type=int, choices=[0, *TEMPERATURES], help=f"checked {off_file}")
    group.add_argument(
        "--lam",
        type=number(float, 0),
        help="weight lambda of the attention [default: as trained, 0.1 for a released file]",
    )

    add_tta(group)
    group = add_run_arguments(parser)
    group.add_argument("--out", type=given_path, metavar="FILE", help="write the metrics to this JSON file")
    group.add_argument(
        "--save_scores", type=given_path, metavar="FILE", help="write scores and targets to this .npz file"
    )
    group.add_argument(
        "--sweep",
        type=axis,
        nargs="+",
        metavar="AXIS",
        help="evaluate other values too, from the same pass: lam=0:1:0.1 [T=1,2,4,inf]",
    )
    args = parser.parse_args()
    if args.save_scores and args.save_scores.suffix != ".npz":
        raise UserError(f"--save_scores {args.save_scores}: name a file that ends in .npz")
    if args.sweep and sorted(name for name, _ in args.sweep) not in (["lam"], ["T", "lam"]):
        raise UserError("--sweep takes lam= once, and T= at most once, as in --sweep lam=0:1:0.1 T=1,2,4,inf")
    return args


if __name__ == "__main__":
    run(main)
