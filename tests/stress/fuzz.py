"""Malformed files for every parser of outside data: each must be told in one line that names the file.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import main
import val
from pipeline.resnet_csra import ResNet_CSRA
from utils import plot, prepare_coco, prepare_csv, prepare_voc
from utils.evaluation import evaluate
from utils.label_files import check_names, class_names, read_labels
from utils.run import Run
from utils.runtime import cli
from utils.scores import read_scores
from utils.transforms import load_image

HANG = 20  # seconds after which a parser counts as hanging


@dataclass(frozen=True, repr=False)
class Parser:
    """A parser of outside data: where its file lies, a good one, and how the two are read and written."""

    path: str
    good: Any
    parse: Callable[[Path], object]
    encode: Callable[[Any], bytes]


def to_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def to_lines(records: Any) -> bytes:
    return b"\n".join(map(to_json, records if isinstance(records, list) else [records]))


def to_words(ids: Any) -> bytes:
    return "\n".join(map(str, ids if isinstance(ids, list) else [ids])).encode(errors="replace")


def to_table(rows: Any) -> bytes:
    rows = [row if isinstance(row, list) else [row] for row in rows] if isinstance(rows, list) else [[rows]]
    return "\n".join(",".join(map(str, row)) for row in rows).encode(errors="replace")


def to_npz(arrays: Any) -> bytes:
    """Write named arrays, what makes no array as its text."""
    content = io.BytesIO()
    named = arrays if isinstance(arrays, dict) else {"scores": arrays}
    try:
        np.savez_compressed(content, **{name or "none": np.asarray(value) for name, value in named.items()})
    except ValueError:
        np.savez(content, scores=str(arrays))
    return content.getvalue()


def to_xml(node: Any) -> bytes:
    """Write nested [tag, child, ...] lists, all else as text."""
    if isinstance(node, list) and node and isinstance(node[0], str):
        tag = node[0].encode(errors="replace")
        return b"<" + tag + b">" + b"".join(map(to_xml, node[1:])) + b"</" + tag + b">"
    return str(node).encode(errors="replace")


def to_checkpoint(value: Any) -> bytes:
    content = io.BytesIO()
    torch.save(value, content)
    return content.getvalue()


def picture() -> bytes:
    """Return a small photograph's worth of JPEG."""
    content = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    Image.fromarray(pixels).save(content, "JPEG")
    return content.getvalue()


def to_picture(value: Any) -> bytes:
    """Return a picture as it is, or any other value as its text: no picture."""
    return value if isinstance(value, bytes) else str(value).encode(errors="replace")


def read_coco(path: Path) -> None:
    prepare_coco.read_split(path.parents[1], "train2014", class_names("coco"))


def read_csv(path: Path) -> None:
    """Read a table as prepare_csv.py does."""
    header, rows = prepare_csv.read_table(path)
    if header[1:] == ["labels"]:
        classes, _ = prepare_csv.read_label_lists(rows, ";")
    else:
        classes, _ = header[1:], [prepare_csv.read_cells(row, header, path) for row in rows]
    check_names(classes, path)
    prepare_csv.find_images(rows, path.parent, path)


def read_checkpoint(path: Path) -> None:
    """Read a checkpoint as val.py does."""
    val.load_checked_model(
        call_with(["val.py", "--dataset", "shapes", "--load_from", str(path)], val.parse_args)
    )


def read_run(path: Path) -> None:
    """Read last.pth as main.py --resume does, for a small network in place of a ResNet."""
    args, saved = call_with(["main.py", "--resume", "--output_dir", str(path.parent)], main.parse_args)
    small_run(args).restore(saved, steps_per_epoch=10)


def call_with(words: list[str], parse: Callable) -> Any:
    """Call a script's parse_args as if these were the words of its command line."""
    before, sys.argv = sys.argv, words
    try:
        return parse()
    finally:
        sys.argv = before


def small_run(args: argparse.Namespace) -> Run:
    """Return a run of a small network in place of a ResNet."""
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for parameter in model.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return Run(args, class_names("shapes"), model, optimizer, scaler, epoch=1, step=2, seconds=1.0)


def good_run() -> dict[str, Any]:
    """Return what main.py writes as last.pth, but for its network's size."""
    args, _ = call_with(["main.py", "--dataset", "shapes", "--device", "cpu"], main.parse_args)
    run = small_run(args)
    run.totals += torch.tensor([0.5, 16.0])
    metrics = evaluate(torch.rand(4, 8, generator=torch.manual_seed(0)).numpy(), [[1, 0] * 4] * 4)
    run.record = run.best = {"epoch": 1, "lr": {"backbone": 0.1}, "train_loss": 0.5, **metrics}
    del run.config["output_dir"]
    return run.contents() | run.resume_state()


def good_checkpoint() -> dict[str, Any]:
    """Return what main.py writes as best.pth, each weight one number seen many times: a small file."""
    state = ResNet_CSRA(1, 0.1, 8, depth=18).state_dict()
    small = {key: torch.zeros((), dtype=value.dtype).expand(value.shape) for key, value in state.items()}
    return {key: value for key, value in good_run().items() if key in ("config", "classes", "record")} | {
        "model": small
    }


LABELS = [{"target": [1, 0, 99], "img_path": f"{i}.jpg"} for i in range(3)]
COCO = {
    "images": [{"id": i, "file_name": f"{i}.jpg"} for i in (3, 5)],
    "categories": [{"id": i + 1, "name": name} for i, name in enumerate(class_names("coco"))],
    "annotations": [{"id": i, "image_id": 3, "category_id": i} for i in (1, 7, 80)],
}
LOG = [{"epoch": epoch, "train_loss": 0.5, "mAP": 0.5, "lr": {"backbone": 0.1}} for epoch in (1, 2)]
TABLE = [["image", "a", "b"], ["images/train2014/3.jpg", 1, ""], ["images/train2014/5.jpg", 0, 1]]
OBJECT = ["object", ["name", "dog"], ["difficult", 0], ["bndbox", ["xmin", 3], ["ymin", 4]]]
PARSERS = {
    "VOC annotation": Parser(
        "a.xml",
        ["annotation", ["filename", "a.jpg"], OBJECT, OBJECT],
        lambda path: prepare_voc.read_target(path, class_names("voc07")),
        to_xml,
    ),
    "VOC split": Parser("train.txt", ["000005", "000007"], prepare_voc.read_ids, to_words),
    "COCO annotations": Parser("annotations/instances_train2014.json", COCO, read_coco, to_json),
    "label file": Parser(
        "train.json", LABELS, lambda path: read_labels(path, 3, {1: 1, 0: 0, 99: -1}), to_json
    ),
    "classes.json": Parser(
        "data/mine/classes.json", ["a", "b", "c"], lambda path: class_names("mine"), to_json
    ),
    "checkpoint": Parser("model.pth", good_checkpoint(), read_checkpoint, to_checkpoint),
    "run to resume": Parser("last.pth", good_run(), read_run, to_checkpoint),
    "table": Parser("t.csv", TABLE, read_csv, to_table),
    "scores": Parser("s.npz", {"scores": [[0.5, 1.0]] * 3, "targets": [[0, 1]] * 3}, read_scores, to_npz),
    "results": Parser("r.json", {"AP": {"a": 0.5, "b": None}}, plot.read_results, to_json),
    "image": Parser("a.jpg", picture(), lambda path: load_image(str(path), 10**6), to_picture),
    "log": Parser("log.jsonl", LOG, lambda path: plot.read_run(path.parent), to_lines),
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


JSON_AND_TENSORS = JSON | TENSORS


@st.composite
def malformed(draw: st.DrawFn, parser: Parser) -> bytes:
    """Draw a file that differs from a good one: in what it says, in its bytes, or in everything."""
    values = JSON_AND_TENSORS if parser.encode is to_checkpoint else JSON
    kind = draw(st.sampled_from(["said"] * 6 + ["bytes"] * 3 + ["other", "noise", "nested"]))
    if kind == "said" and isinstance(parser.good, bytes):
        kind = "bytes"
    if kind == "noise":
        return draw(st.binary(max_size=200))
    if kind == "nested":
        depth = draw(st.sampled_from([10, 1000, 100_000]))
        return b"[" * depth if parser.encode is not to_xml else b"<a>" * depth + b"</a>" * depth
    if kind == "other":
        return parser.encode(draw(values))
    if kind == "bytes":
        return damaged(draw, parser.encode(parser.good))
    document = copy.deepcopy([parser.good])
    for _ in range(draw(st.integers(1, 2))):
        change(draw, document, values)
    content = parser.encode(document[0])
    if parser.encode is to_xml and draw(st.booleans()):
        content = b'<!DOCTYPE a [<!ENTITY b "' + b"c" * 100 + b'">]>' + content
    return content


def change(draw: st.DrawFn, document: Any, values: st.SearchStrategy) -> None:
    """Replace, remove or double one value somewhere in nested lists and dicts."""
    while True:
        keys = list(document) if isinstance(document, dict) else range(len(document))
        key = draw(st.sampled_from(keys))
        inner = document[key]
        if isinstance(inner, dict | list) and inner and draw(st.integers(0, 3)):
            document = inner
            continue
        action = draw(st.sampled_from(["replace", "remove", "double"]))
        if action == "remove" and len(document) > 1:
            del document[key]
        elif action == "double" and isinstance(document, list):
            document.append(copy.deepcopy(inner))
        else:
            document[key] = draw(values)
        return


def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Flip bits of a file, cut it, or put other bytes into it."""
    place = draw(st.integers(0, len(content) - 1))
    action = draw(st.sampled_from(["flip", "cut", "insert"]))
    if action == "cut":
        return content[:place]
    if action == "flip":
        return content[:place] + bytes([content[place] ^ 1 << draw(st.integers(0, 7))]) + content[place + 1 :]
    return (
        content[:place]
        + draw(st.binary(min_size=1, max_size=20))
        + content[place + draw(st.integers(0, 9)) :]
    )


def check(parser: Parser, folder: Path, content: bytes) -> bool:
    """Have a parser read a file as a command would, in the working folder; returns whether it was refused.

    Raises AssertionError unless it is accepted, or refused in one line that names the file, soon.
    """
    path = folder / parser.path
    path.write_bytes(content)
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    status, start = 0, time.monotonic()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.run_script(lambda: parser.parse(path))
        except SystemExit as end:
            status = end.code
    err.seek(0)
    message = err.read()
    assert time.monotonic() - start < HANG, f"{parser.path}: hangs"
    assert status in (0, 2)
    if not status:
        assert not message, message
    else:
        assert message.count("\n") == 1, message
        assert path.name in message, message
    return bool(status)


def fuzz(name: str, folder: Path, count: int, first_seed: int = 0) -> tuple[int, int]:
    """Try a parser of PARSERS on at least `count` malformed files; returns how many it refused, and took."""
    parser, refused, taken = PARSERS[name], 0, 0
    (folder / parser.path).parent.mkdir(parents=True, exist_ok=True)
    (folder / "images" / "train2014").mkdir(parents=True, exist_ok=True)
    for image in COCO["images"]:
        (folder / "images" / "train2014" / image["file_name"]).touch()
    assert not check(parser, folder, parser.encode(parser.good)), f"{name}: the good file is refused"

    def one(content: bytes) -> None:
        nonlocal refused, taken
        if check(parser, folder, content):
            refused += 1
        else:
            taken += 1

    while refused < count and refused + taken < 30 * count:
        trial = given(malformed(parser))(one)
        trial = settings(
            max_examples=min(count, 1000),
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )(seed(first_seed + refused + taken)(trial))
        trial()
    return refused, taken
