"""Label any images, and show where the model looked.

python demo.py --load_from MODEL.pth --img_dir photos [--heatmap]
"""

import argparse
import csv
import os
import re
import sys
from pathlib import Path

import utils.runtime.passive_waiting  # noqa: F401  before torch

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import BatchSampler

from pipeline.csra import AveragePooling
from utils.checkpoint import load_model_for
from utils.commands import options
from utils.data.decoding import load_image
from utils.data.loaders import Loader
from utils.data.photos import Photos, collate_readable
from utils.data.samples import to_float
from utils.data.search import find_photos
from utils.inference.heatmap import ClassMap, contact_sheet, panel
from utils.inference.predict import best_classes
from utils.metrics.thresholds import read_thresholds, threshold
from utils.runtime import interrupt
from utils.runtime.cli import Parser, given_path, number, one_line, run_script
from utils.runtime.device import autocast, choose_device
from utils.runtime.files import atomic_write, check_file, check_folder, write_json
from utils.runtime.progress import progress


def main() -> None:
    args = parse_args()
    paths = find_photos(args.img_dir, args.out_dir if args.heatmap else None)
    folders = heatmap_folders(args.out_dir, paths) if args.heatmap else {}
    model = load_model_for(args)
    thresholds = read_thresholds(args.threshold, model.classes)
    device = choose_device(args.device, args.amp, args.compile)
    if args.compile:
        model.features = torch.compile(model.features)
    model.to(device, memory_format=torch.channels_last)
    dataset = Photos(paths, model.options["img_size"], args.max_pixels)
    batches = BatchSampler(range(len(paths)), args.batch_size, drop_last=False)
    loader = Loader(dataset, batches, args.num_workers, collate_fn=collate_readable)

    results, signals = {}, interrupt.deferring_signals("stopping")
    with signals, progress(len(paths), "label") as bar, torch.inference_mode():
        for indices, images, faults in loader:
            if interrupt.received:
                interrupt.stop()
            for fault in faults:
                bar.write(f"skipped: {one_line(fault)}", file=sys.stderr)
            if indices:
                with autocast(device, args.amp):
                    features = model.features(to_float(images, device))
                    logits = model.classifier(features)
                    if args.tta == "flip":
                        logits = (logits + model(to_float(images.flip(3), device))) / 2
                    maps = model.classifier.attention_maps(features).cpu().numpy() if args.heatmap else None
                scores = logits.cpu().double().sigmoid().numpy()
            for row, index in enumerate(indices):
                path = paths[index]
                results[path] = scores[row]
                best = best_classes(scores[row], thresholds, args.top)
                found = ", ".join(f"{model.classes[c]} {scores[row, c]:.2f}" for c in best)
                bar.write(one_line(f"{path}: {found or '-'}"))
                if args.heatmap:
                    class_maps = [class_map(model, c, scores[row, c], maps[row, c]) for c in best]
                    write_heatmaps(folders[path], path, args.max_pixels, class_maps)
            bar.update(len(indices) + len(faults))
    write_tables(args, model.classes, results)
    for written in filter(None, (args.heatmap and args.out_dir, args.json, args.csv)):
        print(f"written to {written}")
    if skipped := len(paths) - len(results):
        print(f"skipped {skipped} of {len(paths)} files: not readable as images", file=sys.stderr)
        sys.exit(1)


def heatmap_folders(out_dir: Path, paths: list[str]) -> dict[str, Path]:
    """Return a folder for the pictures of each image, in the same subfolders of out_dir as the image."""
    common = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    folders = {path: out_dir / os.path.relpath(path, common) for path in paths}
    for folder in folders.values():
        check_folder(folder, "--out_dir")
    return folders


def class_map(model: nn.Module, c: int, score: float, values: np.ndarray) -> ClassMap:
    """Return the ClassMap of class c; it holds shares for CSRA and scores for average pooling."""
    is_score = isinstance(model.classifier, AveragePooling)
    maximum = f"{max(0, values.max()):.1f}" if is_score else f"{100 * values.max():.0f} %"
    measure = "score of the place" if is_score else "share of attention"
    return ClassMap(model.classes[c], float(score), values, maximum, measure)


def write_heatmaps(folder: Path, path: str, max_pixels: int, class_maps: list[ClassMap]) -> None:
    """Write a picture for each class to a folder, and a sheet of them all."""
    image = Image.fromarray(load_image(path, max_pixels, exif=True).permute(1, 2, 0).numpy())
    for earlier in folder.glob("*_*.png"):
        earlier.unlink()
    pictures = {"sheet": contact_sheet(image, class_maps, os.path.basename(path))}
    for rank, found in enumerate(class_maps, start=1):
        name = re.sub(r"\W+", "_", found.name)[:50]
        pictures[f"{rank}_{name}"] = panel(image, found)
    for name, picture in pictures.items():
        with atomic_write(folder / f"{name}.png", "wb") as file:
            picture.save(file, "PNG")


def write_tables(args: argparse.Namespace, classes: list[str], results: dict[str, np.ndarray]) -> None:
    """Write all scores of all images to the files that --json and --csv name."""
    if args.json:
        rows = [{"image": path, "scores": dict(zip(classes, row.tolist()))} for path, row in results.items()]
        write_json(args.json, rows, indent=1)
    if args.csv:
        with atomic_write(args.csv) as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["image", *classes])
            table.writerows([path, *(f"{score:.6g}" for score in row)] for path, row in results.items())


def parse_args() -> argparse.Namespace:
    parser = Parser(description="Label images. Exit status 1: some files were skipped; 2: a mistake.")
    group = parser.add_argument_group("data")
    options.add_dataset_of_checkpoint(group)
    options.add_image_options(group, from_checkpoint=True)
    options.add_loader_options(group, batch_help="images per step")
    dir_help = "image files, folders (with all below them) or quoted patterns such as 'photos/**/*.jpg'"
    group.add_argument("--img_dir", nargs="+", required=True, metavar="PLACE", help=dir_help)
    group = parser.add_argument_group("model")
    options.add_model_options(group, from_checkpoint=True)
    options.add_checkpoint(group)
    options.add_tta(group)
    group = parser.add_argument_group("output")
    least = "lowest score to show, or a .json file with one per class [default: 0.5, or 0 if --top is given]"
    group.add_argument("--threshold", type=threshold, metavar="NUMBER|FILE", help=least)
    group.add_argument("--top", type=number(int, 1), help="largest number of classes to show")
    group.add_argument("--heatmap", action="store_true", help="draw where the model saw each class shown")
    group.add_argument("--out_dir", type=given_path, default=Path("heatmaps"), help="folder for the heatmaps")
    group.add_argument("--json", type=given_path, metavar="FILE", help="write all scores to this .json file")
    group.add_argument("--csv", type=given_path, metavar="FILE", help="write all scores to this .csv file")
    options.add_run_options(parser.add_argument_group("run"))
    args = parser.parse_args()
    if args.threshold is None:
        args.threshold = 0.0 if args.top else 0.5
    check_file(args.json, "--json", ".json")
    check_file(args.csv, "--csv", ".csv")
    return args


if __name__ == "__main__":
    run_script(main)
