"""Malformed files for each parser of outside data, which must refuse them in one line that names the file.

python tests/stress/torture.py --fuzz 1000
"""

import argparse
import contextlib
import copy
import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import main
import val
from pipeline.resnet_csra import ResNet_CSRA
from utils import prepare_coco, prepare_csv, prepare_nuswide, prepare_voc, prepare_wider
from utils.charts.class_bars import read_results
from utils.charts.training_curves import read_run
from utils.command_line.load_from import load_model_for
from utils.data import own_coco
from utils.data.classes import class_names
from utils.data.coco_annotations import load_annotations, read_categories, reporting_bad_annotations
from utils.data.decoding import load_image
from utils.data.label_files import read_labels
from utils.data.open_images import Codes, read_display_names, read_verified
from utils.data.tables import read_label_table
from utils.evaluation import evaluate
from utils.metrics.score_files import read_scores
from utils.runtime import script
from utils.training.folder import RunFolder
from utils.training.restoring import restore
from utils.training.run import Run
from utils.training.saving import last_checkpoint
from utils.training.state import Progress, TrainingState

MAX_SECONDS = 20  # a parser that takes longer hangs


class Parser(NamedTuple):
    """A parser of outside data: where its file lies, a good content, and how to read and write that."""

    path: str
    good: Any
    parse: Callable[[Path], object]
    encode: Callable[[Any], bytes]


def as_list(value: Any) -> list:
    return value if isinstance(value, list) else [value]


def to_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def to_lines(records: Any) -> bytes:
    return b"\n".join(map(to_json, as_list(records)))


def to_words(ids: Any) -> bytes:
    return "\n".join(map(str, as_list(ids))).encode(errors="replace")


def to_table(rows: Any) -> bytes:
    return "\n".join(",".join(map(str, as_list(row))) for row in as_list(rows)).encode(errors="replace")


def to_npz(arrays: Any) -> bytes:
    """Write named arrays, or their text if they are no arrays."""
    content = io.BytesIO()
    named = arrays if isinstance(arrays, dict) else {"scores": arrays}
    try:
        np.savez_compressed(content, **{name or "none": np.asarray(value) for name, value in named.items()})
    except ValueError:
        np.savez(content, scores=str(arrays))
    return content.getvalue()


def to_xml(node: Any) -> bytes:
    """Write nested [tag, child, ...] lists; any other value becomes text."""
    if isinstance(node, list) and node and isinstance(node[0], str):
        tag = node[0].encode(errors="replace")
        return b"<" + tag + b">" + b"".join(map(to_xml, node[1:])) + b"</" + tag + b">"
    return str(node).encode(errors="replace")


def to_checkpoint(value: Any) -> bytes:
    content = io.BytesIO()
    torch.save(value, content)
    return content.getvalue()


def to_picture(value: Any) -> bytes:
    """Write a picture, given as bytes, as it is; any other value becomes text."""
    return value if isinstance(value, bytes) else str(value).encode(errors="replace")


def make_picture() -> bytes:
    """Return a small JPEG."""
    content = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    Image.fromarray(pixels).save(content, "JPEG")
    return content.getvalue()


def read_coco(path: Path) -> None:
    prepare_coco.read_split(path.parents[1], "train2014", class_names("coco"))


def read_own_coco(path: Path) -> None:
    """Read annotations in COCO's format as prepare_coco.py --dataset does."""
    with reporting_bad_annotations(path):
        coco = load_annotations(path)
        categories = read_categories(coco)
    img_dir = path.parents[1] / "images" / "train2014"
    file = own_coco.Annotations(path, coco, categories, img_dir)
    own_coco.read_pictures(file, own_coco.choose_classes(file, None))


def read_wider(path: Path) -> None:
    prepare_wider.read_people(path.parents[1], "test", num_classes=3, max_pixels=10**6)


def read_csv(path: Path) -> None:
    """Read a table as prepare_csv.py does."""
    prepare_csv.find_pictures(read_label_table(path, None, None), path.parent)


def read_open_images(path: Path) -> None:
    """Read a file of verified labels, of which one image is there."""
    read_verified(path, np.array([b"000002b66c9c498e"]), Codes())


def read_nuswide_concepts(path: Path) -> None:
    prepare_nuswide.read_concepts(prepare_nuswide.Folder(path.parent))


def read_checkpoint(path: Path) -> None:
    """Read a checkpoint as val.py does."""
    load_model_for(parse_args(val, "--dataset", "shapes", "--load_from", path)[1])


def resume_run(path: Path) -> None:
    """Read last.pth as main.py --resume does, but into a small network."""
    with RunFolder() as folder:
        folder.open(path.parent)
        saved = folder.read_last()
        with mock.patch.object(sys, "argv", ["main.py", "--resume", str(path.parent)]):
            args = main.resumed_args(saved)
        restore(small_run(args, folder), saved)


def parse_args(script: Any, *words: object) -> Any:
    """Return what a script's parse_args returns for a command line."""
    with mock.patch.object(sys, "argv", [Path(script.__file__).name, *map(str, words)]):
        return script.parse_args()


def small_run(args: argparse.Namespace, folder: RunFolder) -> Run:
    """Return a run with a small network in place of a ResNet."""
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for parameter in network.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    progress = Progress(epoch=1, step=2, seconds=0.5, loss_sum=0.5, num_labels=16.0)
    state = TrainingState(network, optimizer, scaler, None, progress)
    return Run(args, class_names("shapes"), "labels", 40, 3, state, folder)


def good_run() -> dict[str, Any]:
    """Return the content of a last.pth of main.py, for a small network."""
    args = main.resolve(main.make_parser().parse_args(["--dataset", "shapes", "--device", "cpu"]))
    run = small_run(args, RunFolder())
    metrics = evaluate(torch.rand(4, 8, generator=torch.manual_seed(0)).numpy(), [[1, 0] * 4] * 4)
    run.progress.best = {"epoch": 1, "lr": {"backbone": 0.1}, "train_loss": 0.5, **metrics}
    run.progress.record = run.progress.best
    checkpoint = last_checkpoint(run)
    own_buffers = checkpoint.pop("own_buffers")
    return {**checkpoint, "buffers": [own_buffers]}


def good_checkpoint() -> dict[str, Any]:
    """Return the content of a best.pth of main.py. Each tensor repeats one number, so the file is small."""
    state = ResNet_CSRA(1, 0.1, 8, depth=18).state_dict()
    weights = {key: torch.zeros((), dtype=value.dtype).expand(value.shape) for key, value in state.items()}
    run = good_run()
    return {"model": weights} | {key: run[key] for key in ("config", "classes", "record")}


PICTURES = ("3.jpg", "5.jpg")  # these lie in images/train2014/ and in Image/
LABELS: list[dict] = [{"target": [1, 0, 99], "img_path": "0.jpg", "bbox": [-5.5, 1, 20, 30]}]
LABELS += [{"positives": [2, 0], "img_path": "1.jpg", "bbox": [-5.5, 1, 20, 30]}]
LABELS += [{"positives": [1], "negatives": [0], "img_path": "2.jpg", "bbox": [-5.5, 1, 20, 30]}]
COCO = {
    "images": [{"id": int(name[0]), "file_name": name} for name in PICTURES],
    "categories": [{"id": i + 1, "name": name} for i, name in enumerate(class_names("coco"))],
    "annotations": [{"id": i, "image_id": 3, "category_id": i} for i in (1, 7, 80)],
}
SCORES = {"scores": [[0.5, 1.0]] * 3, "targets": [[0, 1]] * 3, "unknown_is_negative": True}
PERSON = {"attribute": [1, -1, 0], "bbox": [-5.5, 10, 20, 50.2]}
WIDER = {"images": [{"file_name": name, "targets": [PERSON, PERSON]} for name in PICTURES]}
LOG = [{"epoch": epoch, "train_loss": 0.5, "mAP": 0.5, "lr": {"backbone": 0.1}} for epoch in (1, 2)]
TABLE = [["image", "a", "b"], ["images/train2014/3.jpg", 1, ""], ["images/train2014/5.jpg", 0, 1]]
LABEL_LISTS = [["image", "labels"], ["images/train2014/3.jpg", "a;b"], ["images/train2014/5.jpg", ""]]
OPEN_IMAGES = [["000002b66c9c498e", "verification", "/m/0bt9lr", value] for value in (1, 0)]
OBJECT = ["object", ["name", "dog"], ["difficult", 0], ["bndbox", ["xmin", 3], ["ymin", 4]]]
PARSERS = {
    "VOC annotation": Parser(
        "a.xml",
        ["annotation", ["filename", "a.jpg"], OBJECT, OBJECT],
        lambda path: prepare_voc.read_annotation(path, class_names("voc07")),
        to_xml,
    ),
    "VOC split": Parser("train.txt", ["000005", "000007"], prepare_voc.read_ids, to_words),
    "COCO annotations": Parser("annotations/instances_train2014.json", COCO, read_coco, to_json),
    "COCO annotations of one's own": Parser("annotations/mine.json", COCO, read_own_coco, to_json),
    "WIDER annotations": Parser("Annotations/wider_attribute_test.json", WIDER, read_wider, to_json),
    "Open Images labels": Parser("train.csv", OPEN_IMAGES, read_open_images, to_table),
    "Open Images classes": Parser("names.csv", [["/m/0bt9lr", "Dog"]], read_display_names, to_table),
    "NUS-WIDE concepts": Parser("Concepts81.txt", ["airport", "sky"], read_nuswide_concepts, to_words),
    "label file": Parser(
        "train.json", LABELS, lambda path: read_labels(path, 3, {1: 1, 0: 0, 99: -1}), to_json
    ),
    "classes.json": Parser(
        "data/mine/classes.json", ["a", "b", "c"], lambda path: class_names("mine"), to_json
    ),
    "checkpoint": Parser("model.pth", good_checkpoint(), read_checkpoint, to_checkpoint),
    "run to resume": Parser("last.pth", good_run(), resume_run, to_checkpoint),
    "table": Parser("t.csv", TABLE, read_csv, to_table),
    "table of label lists": Parser("t.csv", LABEL_LISTS, read_csv, to_table),
    "scores": Parser("s.npz", SCORES, read_scores, to_npz),
    "results": Parser("r.json", {"AP": {"a": 0.5, "b": None}}, read_results, to_json),
    "image": Parser("a.jpg", make_picture(), lambda path: load_image(str(path), 10**6), to_picture),
    "log": Parser("log.jsonl", LOG, lambda path: read_run(path.parent), to_lines),
}
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from(
        [0, -1, 1.5, 10**30, 1e308, float("nan"), float("inf"), "", "a" * 5000, "../../a", "\x1b", "\ud800"]
    )
    | st.integers()
    | st.floats()
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
TENSORS = st.sampled_from(
    [
        torch.zeros(3, dtype=torch.int64),
        torch.zeros(2, 3, dtype=torch.complex64),
        torch.full((64, 3, 7, 7), torch.nan),
        torch.eye(3).to_sparse(),
        torch.zeros(1).expand(10**6, 10**6),
        torch.zeros(4, dtype=torch.float8_e4m3fn),
        torch.zeros(2, device="meta"),
        torch.zeros(()),
        torch.zeros(0),
    ]
)


@st.composite
def malformed(draw: st.DrawFn, parser: Parser) -> bytes:
    """Draw a file that differs from a good one: in its values, in its bytes, or completely."""
    values = JSON | TENSORS if parser.encode is to_checkpoint else JSON
    kind = draw(st.sampled_from(["values"] * 6 + ["bytes"] * 3 + ["other", "noise", "nested"]))
    if kind == "noise":
        return draw(st.binary(max_size=200))
    if kind == "nested":
        depth = draw(st.sampled_from([10, 1000, 100_000]))
        return b"[" * depth if parser.encode is not to_xml else b"<a>" * depth + b"</a>" * depth
    if kind == "other":
        return parser.encode(draw(values))
    if kind == "bytes" or isinstance(parser.good, bytes):
        return damaged(draw, parser.encode(parser.good))
    document = copy.deepcopy([parser.good])
    for _ in range(draw(st.integers(1, 2))):
        change(draw, document, values)
    content = parser.encode(document[0])
    if parser.encode is to_xml and draw(st.booleans()):
        content = b'<!DOCTYPE a [<!ENTITY b "' + b"c" * 100 + b'">]>' + content
    return content


def change(draw: st.DrawFn, document: list | dict, values: st.SearchStrategy) -> None:
    """Replace, remove or repeat one value somewhere in nested lists and dicts."""
    key = draw(st.sampled_from(list(document) if isinstance(document, dict) else range(len(document))))
    inner = document[key]
    if isinstance(inner, dict | list) and inner and draw(st.integers(0, 3)):
        change(draw, inner, values)
        return
    action = draw(st.sampled_from(["replace", "remove", "repeat"]))
    if action == "remove" and len(document) > 1:
        del document[key]
    elif action == "repeat" and isinstance(document, list):
        document.append(copy.deepcopy(inner))
    else:
        document[key] = draw(values)


def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Flip a bit of a file, cut the file, or put other bytes into it."""
    place = draw(st.integers(0, len(content) - 1))
    before, after = content[:place], content[place:]
    action = draw(st.sampled_from(["flip", "cut", "insert"]))
    if action == "cut":
        return before
    if action == "flip":
        return before + bytes([after[0] ^ 1 << draw(st.integers(0, 7))]) + after[1:]
    return before + draw(st.binary(min_size=1, max_size=20)) + after[draw(st.integers(0, 9)) :]


def is_refused(parser: Parser, folder: Path, content: bytes) -> bool:
    """Let a parser read a file, in the working folder, like a command; return whether it refuses the file.

    Raises AssertionError if the parser hangs, prints something for a file that it accepts, or refuses a file
    in any other way than with status 2 and one line that names the file.
    """
    path = folder / parser.path
    path.unlink(missing_ok=True)  # ext4 writes an emptied file to the disk at once
    path.write_bytes(content)
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    status, start = 0, time.monotonic()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            script.run_script(lambda: parser.parse(path))
        except SystemExit as end:
            status = end.code
    err.seek(0)
    message = err.read()
    assert time.monotonic() - start < MAX_SECONDS, f"{parser.path}: the parser hangs"
    assert status in (0, 2)
    assert message.count("\n") == (1 if status else 0), message
    assert path.name in message or not status, message
    return status == 2


def fuzz(name: str, folder: Path, count: int, first_seed: int = 0) -> tuple[int, int]:
    """Give a parser of PARSERS malformed files until it has refused `count` of them.

    Gives up after 30 x `count` files. Returns how many files the parser refused and accepted.
    """
    parser, results = PARSERS[name], []
    (folder / parser.path).parent.mkdir(parents=True, exist_ok=True)
    for images in (folder / "images" / "train2014", folder / "Image"):
        images.mkdir(parents=True, exist_ok=True)
        for picture in PICTURES:
            (images / picture).write_bytes(make_picture())
    assert not is_refused(parser, folder, parser.encode(parser.good)), f"{name}: the good file is refused"

    def try_file(content: bytes) -> None:
        results.append(is_refused(parser, folder, content))

    while sum(results) < count and len(results) < 30 * count:
        options = settings(
            max_examples=min(count, 1000),
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        # The same seed would draw the same files again.
        options(seed(first_seed + len(results))(given(malformed(parser))(try_file)))()
    return sum(results), results.count(False)
