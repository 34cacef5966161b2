"""Label any images, and show where the model looked.

python demo.py --load_from MODEL.pth --img_dir photos [--heatmap]
"""

import argparse
import csv
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipeline.csra import AveragePooling
from pipeline.models import restore
from utils.checkpoint import load_checkpoint, load_weights, names_of_classes
from utils.datasets import DATASETS, DatasetSpec, to_float
from utils.heatmap import ClassMap, contact_sheet, panel
from utils.photos import Photos, find_photos, make_photo_loader
from utils.runtime import interrupt
from utils.runtime.cli import (
    Parser,
    UserError,
    add_max_pixels,
    add_run_arguments,
    add_tta,
    blaming,
    default_workers,
    given_path,
    number,
    one_line,
    run,
)
from utils.runtime.device import autocast, check_compiler, choose_device
from utils.runtime.files import check_file, check_folder, whole_file
from utils.runtime.progress import progress
from utils.transforms import load_image


def main() -> None:
    args = parse_args()
    paths = find_photos(args.img_dir, args.out_dir if args.heatmap else None)
    checkpoint = load_checkpoint(args.load_from)
    config = checkpoint["config"]
    # A data set of one's own, which need not be on this machine, has the default form.
    spec = DATASETS.get(args.dataset or config.get("dataset"), DatasetSpec(folder=""))
    with blaming(args.load_from):
        model, weights, settings = restore(
            checkpoint["model"], config, args.lam, args.img_size, spec.img_size
        )
    load_weights(model, weights, str(args.load_from))
    classes = names_of_classes(checkpoint, args.load_from, settings["num_cls"], args.dataset or "voc07")
    device = choose_device(args.device, args.amp)
    if args.compile:
        check_compiler(device)
        model.features = torch.compile(model.features)
    model.to(device, memory_format=torch.channels_last).eval()
    dataset = Photos(paths, settings["img_size"], args.max_pixels)
    loader = make_photo_loader(dataset, args.batch_size, args.num_workers)

    baseline = isinstance(model.classifier, AveragePooling)
    common = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    folders = {path: args.out_dir / os.path.relpath(os.path.abspath(path), common) for path in paths}
    if args.heatmap and any(folder.is_file() for folder in folders.values()):
        raise UserError(f"--out_dir {args.out_dir} holds files named as the images are: name another folder")

    results, skipped = {}, 0
    listening = interrupt.listening("stopping")
    with listening, progress(len(paths), "label") as bar, torch.inference_mode():
        for indices, images, faults in loader:
            interrupt.stop_if_asked()
            for fault in faults:
                bar.write(f"skipped: {one_line(fault)}", file=sys.stderr)
            skipped += len(faults)
            if indices:
                with autocast(device, args.amp):
                    features = model.features(to_float(images, device, spec))
                    logits = model.classifier(features)
                    if args.tta == "flip":
                        logits = (logits + model(to_float(images.flip(3), device, spec))) / 2
                    maps = model.classifier.attention_maps(features) if args.heatmap else None
                scores = logits.cpu().double().sigmoid().numpy()
            for row, index in enumerate(indices):
                best = best_classes(scores[row], args.threshold, args.top)
                results[paths[index]] = scores[row]
                bar.write(describe(paths[index], [(classes[c], scores[row, c]) for c in best]))
                if args.heatmap:
                    seen = maps[row].cpu().numpy()
                    found = [class_map(classes[c], scores[row, c], seen[c], baseline) for c in best]
                    write_heatmaps(folders[paths[index]], paths[index], args.max_pixels, found)
            bar.update(len(indices) + len(faults))
    write_scores(args, classes, results)
    for written in (args.heatmap and args.out_dir, args.json, args.csv):
        if written:
            print(f"written to {written}")
    if skipped:
        print(
            f"{skipped} of {len(paths)} files were skipped, being no images that can be read", file=sys.stderr
        )
        sys.exit(1)


def best_classes(scores: np.ndarray, threshold: float | None, top: int | None) -> list[int]:
    """Return the classes to show, best first: those from the threshold on, the top ones, or both."""
    least = threshold if threshold is not None else (0.5 if top is None else 0.0)
    order = np.argsort(-scores, kind="stable")[:top]
    return [int(c) for c in order if scores[c] >= least]


def describe(path: str, found: list[tuple[str, float]]) -> str:
    """Return the line that says what is in an image."""
    return one_line(f"{path}: {', '.join(f'{name} {score:.2f}' for name, score in found) or '-'}")


def class_map(name: str, score: float, values: np.ndarray, baseline: bool) -> ClassMap:
    """Return what a picture of a class needs: attention is a share of the whole, the baseline's a score."""
    most = f"{max(0, values.max()):.1f}" if baseline else f"{100 * values.max():.0f} %"
    return ClassMap(name, float(score), values, most)


def write_heatmaps(folder: Path, path: str, max_pixels: int, found: list[ClassMap]) -> None:
    """Write a picture for each class to a folder, and the sheet of them all."""
    image = Image.fromarray(load_image(path, max_pixels).permute(1, 2, 0).numpy())
    for earlier in folder.glob("*_*.png"):
        earlier.unlink()
    save_picture(folder / "sheet.png", contact_sheet(image, found, os.path.basename(path)))
    for rank, item in enumerate(found, start=1):
        name = re.sub(r"\W+", "_", item.name)[:50]
        save_picture(folder / f"{rank}_{name}.png", panel(image, item))


def save_picture(path: Path, picture: Image.Image) -> None:
    """Write a picture as a PNG file."""
    with whole_file(path, "wb") as file:
        picture.save(file, "PNG")


def write_scores(args: argparse.Namespace, classes: list[str], results: dict[str, np.ndarray]) -> None:
    """Write all scores of all images to the files that --json and --csv name."""
    if args.json:
        with whole_file(args.json) as file:
            entries = (
                {"image": path, "scores": dict(zip(classes, row.tolist()))} for path, row in results.items()
            )
            json.dump(list(entries), file, indent=1)
    if args.csv:
        with whole_file(args.csv) as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["image", *classes])
            table.writerows([path, *(f"{score:.6g}" for score in row)] for path, row in results.items())


def parse_args() -> argparse.Namespace:
    parser = Parser(description="Label images. Exit status 1: some files were skipped; 2: a mistake.")
    group = parser.add_argument_group("images")
    group.add_argument(
        "--img_dir",
        nargs="+",
        required=True,
        metavar="PLACE",
        help="image files, folders (with all below them) or quoted patterns such as 'photos/**/*.jpg'",
    )
    group.add_argument(
        "--img_size",
        type=number(int, 33),
        help="side of the square input, pixels [default: as trained, else 448]",
    )
    group.add_argument(
        "--batch_size", type=number(int, 1), default=16, help="images of a step [default: %(default)s]"
    )
    group.add_argument(
        "--num_workers",
        type=number(int, 0),
        default=default_workers(),
        help="processes that load images [default: one per CPU core, at most 8]",
    )
    add_max_pixels(group)

    group = parser.add_argument_group("model")
    group.add_argument("--load_from", type=given_path, required=True, metavar="FILE", help="the checkpoint")
    group.add_argument(
        "--dataset",
        help="whose class names a released checkpoint has: voc07, coco or NAME for data/NAME/classes.json; a "
        "checkpoint of main.py holds its own [default: voc07]",
    )
    group.add_argument(
        "--lam",
        type=number(float, 0),
        help="weight lambda of the attention [default: as trained, 0.1 for a released file]",
    )

    add_tta(group)

    group = parser.add_argument_group("output")
    group.add_argument(
        "--threshold", type=number(float, 0), help="show classes of at least this score [default: 0.5]"
    )
    group.add_argument(
        "--top", type=number(int, 1), help="show so many classes [default: all from the threshold on]"
    )
    group.add_argument(
        "--heatmap", action="store_true", help="draw where the model saw each class shown, and a sheet of all"
    )
    group.add_argument(
        "--out_dir",
        type=given_path,
        default=Path("heatmaps"),
        help="folder of the pictures [default: %(default)s]",
    )
    group.add_argument("--json", type=given_path, metavar="FILE", help="write all scores to this .json file")
    group.add_argument("--csv", type=given_path, metavar="FILE", help="write all scores to this .csv file")
    add_run_arguments(parser)
    args = parser.parse_args()
    if args.heatmap:
        check_folder(args.out_dir, "--out_dir")
    for option in ("json", "csv"):
        file = getattr(args, option)
        if file and file.suffix != f".{option}":
            raise UserError(f"--{option} {file}: name a file that ends in .{option}")
        if file:
            check_file(file, f"--{option}")
    return args


if __name__ == "__main__":
    run(main)
