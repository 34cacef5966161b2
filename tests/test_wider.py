"""WIDER Attribute: one sample per person, cut out of the image."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import main
import val
from helpers import TINY
from utils import evaluation, prepare_wider
from utils.data.datasets import DATASETS
from utils.data.label_files import read_labels
from utils.data.labels import IGNORED
from utils.data.samples import load_split
from utils.data.transforms import cut_out
from utils.inference.network_metrics import evaluate_scores
from utils.metrics.blocks import ArrayScores
from utils.metrics.score_files import read_scores
from utils.runtime.errors import UserError


@pytest.fixture
def wider(workdir) -> Path:
    """Make a data set with one image per split; one of its three people is outside the image."""
    folder = workdir / "Dataset" / "WIDER"
    (folder / "Annotations").mkdir(parents=True)
    for split in ("trainval", "test"):
        name = f"{split}/0--Parade/a b.png"
        pixels = np.zeros((40, 60, 3), np.uint8)
        pixels[10:30, 20:50] = (200, 100, 50)
        (folder / "Image" / name).parent.mkdir(parents=True)
        Image.fromarray(pixels).save(folder / "Image" / name)
        people = [
            {"attribute": [1, -1, 0] + [-1] * 11, "bbox": [20, 10, 30, 20]},
            {"attribute": [0] * 14, "bbox": [-5.5, 30.2, 20, 50]},
            {"attribute": [1] * 14, "bbox": [70, 10, 30, 20]},
        ]
        content = {"images": [{"file_name": name, "targets": people}]}
        (folder / "Annotations" / f"wider_attribute_{split}.json").write_text(json.dumps(content))
    return folder


def test_labels_and_boxes(wider, command):
    result = command(prepare_wider)
    assert result.status == 0, result.err
    files = [Path(f"data/wider/{name}_wider.json") for name in ("trainval", "test")]
    trainval, test = (json.loads(file.read_text()) for file in files)
    assert [entry["bbox"] for entry in trainval] == [[20, 10, 30, 20], [-5.5, 30.2, 20, 50], [70, 10, 30, 20]]
    assert trainval[0]["target"] == [1, 0, 0] + [0] * 11
    assert trainval[1]["target"] == [0] * 14
    assert test[0]["target"] == [1, 0, 99] + [0] * 11
    assert test[1]["target"] == [99] * 14
    assert test[0]["img_path"] == "Dataset/WIDER/Image/test/0--Parade/a b.png"

    spec = DATASETS["wider"]
    dataset = load_split(spec, "test", 32)
    assert (dataset.labels.targets.row(1) == IGNORED).all()
    image, _, _ = dataset[0, 0, True]
    assert (image == torch.tensor([200, 100, 50]).view(3, 1, 1)).all()  # only the person
    assert (dataset[0, 2, True][0] == 0).all()  # a person outside of the image is black, not left out
    train = load_split(spec, "train", 32, train=True)
    # The training images may be flipped, but are not cropped.
    assert all((train[epoch, 0, True][0] == image).all() for epoch in range(5))
    assert (spec.normalize, spec.decay_step) == ("0.5", 5)
    assert (spec.model, spec.img_size) == ("vit_B16_224", 224)


def test_an_image_of_wider_has_one_name(wider, fails):
    path = wider / "Annotations" / "wider_attribute_test.json"
    content = json.loads(path.read_text())
    (image,) = content["images"]
    content["images"].append({**image, "file_name": f"./{image['file_name']}"})
    path.write_text(json.dumps(content))
    says = [path.name, "test/0--Parade/a b.png and ./test/0--Parade/a b.png are one image"]
    fails(prepare_wider, says=says)


def test_an_image_is_in_one_split_of_wider(wider, fails):
    test_image = wider / "Image" / "test" / "0--Parade" / "a b.png"
    test_image.unlink()
    test_image.symlink_to((wider / "Image" / "trainval" / "0--Parade" / "a b.png").resolve())
    fails(prepare_wider, says=["a b.png", "is in trainval_wider.json and in test_wider.json"])


def test_the_authors_folder_is_found(wider, command, fails):
    wider.rename(wider.with_name("WIDER_ATTRIBUTE"))
    assert command(prepare_wider).status == 0
    entry = json.loads(Path("data/wider/test_wider.json").read_text())[0]
    assert entry["img_path"] == "Dataset/WIDER_ATTRIBUTE/Image/test/0--Parade/a b.png"
    wider.with_name("WIDER_ATTRIBUTE").rename("elsewhere")
    fails(prepare_wider, says=["Dataset/WIDER_ATTRIBUTE or Dataset/WIDER", "--data_path"])
    assert command(prepare_wider, "--data_path", "elsewhere").status == 0


BOXES = [
    [0, 0, 60, 40],
    [10, 5, 20, 30],
    [-7, 5, 20, 30],  # over the left edge
    [50, 5, 20, 30],  # over the right edge
    [10, -8, 20, 30],  # over the upper edge
    [10, 25, 20, 30],  # over the lower edge
    [-10, -10, 100, 80],  # over all edges
    [10.5, 12.5, 20.5, 0.6],  # Python rounds halves to even numbers
    [-0.5, -1.5, 7.25, 3.3],
    [0.3, 0.4, 0.4, 0.3],
    [-5.5, 30.2, 20, 50],
    *([70, 5, 9, 9], [-70, 5, 9, 9], [5, 70, 9, 9], [5, -70, 9, 9], [1e6, -1e6, 3, 4]),  # outside
]


def crops(tmp_path: Path, boxes: list[list[float]], size: tuple[int, int] = (60, 40)) -> None:
    """Compare the parts of a label file's boxes with those of Pillow."""
    pixels = np.random.default_rng(0).integers(1, 256, (size[1], size[0], 3), np.uint8)
    picture, image = Image.fromarray(pixels), torch.from_numpy(pixels).permute(2, 0, 1)
    entries = [{"target": [1], "img_path": "a.png", "bbox": box} for box in boxes]
    (tmp_path / "a.json").write_text(json.dumps(entries))
    labels = read_labels(tmp_path / "a.json", 1, {1: 1})
    assert labels.boxes.dtype == np.int32
    for (x, y, w, h), edges in zip(boxes, labels.boxes.tolist(), strict=True):
        expected = np.asarray(picture.crop((x, y, x + w, y + h)))
        assert np.array_equal(cut_out(image, *edges).permute(1, 2, 0).numpy(), expected), (x, y, w, h)


def test_boxes_are_cut_out_as_pillow_does(tmp_path):
    crops(tmp_path, BOXES)


NUMBER = st.integers(-100, 100) | st.floats(-100, 100) | st.integers(-200, 200).map(lambda n: n / 2)
SIDE = st.integers(2, 150) | st.floats(2, 150) | st.integers(4, 300).map(lambda n: n / 2)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(box=st.tuples(NUMBER, NUMBER, SIDE, SIDE), size=st.tuples(st.integers(1, 70), st.integers(1, 70)))
def test_any_box_is_cut_out_as_pillow_does(tmp_path, box, size):
    crops(tmp_path, [list(box)], size)


@pytest.mark.parametrize(
    ("box", "fault"),
    [
        ("[5, 5, 0, 5]", "less than a pixel wide or high"),
        ("[5, 5, 5, -5]", "less than a pixel wide or high"),
        ("[5, 5, 0.4, 5]", "less than a pixel wide or high"),
        ("[9, 9, 100, 101]", "above the limit, max_pixels 10000"),
    ],
)
@pytest.mark.parametrize("old", ["[20, 10, 30, 20]", "[70, 10, 30, 20]"])
def test_a_box_without_area_or_with_too_large_an_area_is_refused(wider, command, fails, box, fault, old):
    says = [f"the box {box} is {fault}", "wider_attribute_test.json: correct or remove person "]
    annotations = wider / "Annotations" / "wider_attribute_test.json"
    good = annotations.read_text()
    annotations.write_text(good.replace(old, box))
    fails(prepare_wider, "--max_pixels", 10000, says=says)
    annotations.write_text(good)
    assert command(prepare_wider).status == 0
    path = Path("data/wider/test_wider.json")
    path.write_text(path.read_text().replace(old, box))
    with pytest.raises(UserError, match=rf"test_wider.json, entry \d is not .*{re.escape(says[0])}"):
        load_split(DATASETS["wider"], "test", 32, max_pixels=10000)


@pytest.mark.parametrize(
    "box",
    ["[NaN, 5, 5, 1]", "[5, 5, 5, NaN]", "[5, -Infinity, 5, 5]", "[1e308, 1e308, 5, 5]", "[1e12, 0, 1, 1]"],
)
def test_a_box_must_hold_finite_numbers(tmp_path, box):
    (tmp_path / "a.json").write_text(f'[{{"target": [1], "img_path": "a.png", "bbox": {box}}}]')
    with pytest.raises(UserError, match=r"a.json, entry 0"):
        read_labels(tmp_path / "a.json", 1, {1: 1})


def test_unspecified_attributes_count_as_negative_except_in_map(wider, command):
    command(prepare_wider)
    labels = load_split(DATASETS["wider"], "test", 32).labels
    scores = np.full((3, 14), 0.1)
    scores[:, 0] = 0.9, 0.95, 0.8  # the targets are 1, unspecified and 1
    metrics = evaluate_scores(ArrayScores(scores), labels)
    assert metrics["AP"][0] == 1
    assert (metrics["CP"], metrics["OP"], metrics["OR"]) == pytest.approx((2 / 3 / 14, 2 / 3, 2 / 15))
    own = labels._replace(unknown_is_negative=False)  # as in a data set of the user
    assert evaluate_scores(ArrayScores(scores), own)["OP"] == 1


@pytest.mark.slow
def test_all_commands_count_unspecified_attributes_alike(wider, command):
    command(prepare_wider)
    options = ["--dataset", "wider", "--model", "resnet18", "--pretrained", "none", *TINY, "--total_epoch", 1]
    assert command(main, *options, "--output_dir", "run").status == 0
    logged = json.loads(Path("run/log.jsonl").read_text())
    arguments = [
        "--dataset",
        "wider",
        "--num_workers",
        0,
        "--load_from",
        "run/best.pth",
        "--sweep",
        "lam=0.1",
    ]
    result = command(val, *arguments, "--out", "r.json", "--save_scores", "s.npz")
    assert result.status == 0, result.err
    metrics = json.loads(Path("r.json").read_text())
    labels, scores = load_split(DATASETS["wider"], "test", 40).labels, read_scores(Path("s.npz")).scores
    targets = labels.targets.rows()
    predicted, positives = scores >= 0.5, targets == 1
    assert (predicted & (targets == IGNORED)).any()
    assert metrics["OP"] == (predicted & positives).sum() / max(1, predicted.sum())  # 99 is negative
    for name in ("mAP", "OP", "CF1", "OF1_3"):
        assert metrics[name] == pytest.approx(logged[name], abs=1e-6)
        assert metrics[name] == pytest.approx(metrics["sweep"][0][name], abs=1e-6)
    saved = command(evaluation, "s.npz").out.splitlines()[1:]
    assert "\n".join(saved) in result.out


def test_a_malformed_annotation_file_is_reported(wider, fails):
    path = wider / "Annotations" / "wider_attribute_test.json"
    good = path.read_text()

    def refused(content: str, *says: str) -> None:
        path.write_text(content)
        fails(prepare_wider, says=["wider_attribute_test.json", *says])

    refused("{", "JSON")
    refused("{}", "images")
    refused(good.replace('"bbox"', '"box"'), "bbox")
    refused(good.replace("[20, 10, 30, 20]", "[20, 10, 30]"), "person 1 of test/0--Parade/a b.png")
    refused(
        good.replace("[20, 10, 30, 20]", "[NaN, 10, 30, 20]"), "[nan, 10, 30, 20] has a number that is not"
    )
    refused(good.replace("[1, -1, 0", "[1, -1, 7"), "7")
    refused(good.replace("[1, -1, 0, ", "[1, -1, "), "13 attributes")
    refused(good.replace("test/0--Parade", "../test"), "points outside of Image/")
    refused(good.replace("a b.png", "c.png"), "c.png is missing")
    refused('{"images": []}', "annotates no people")
    path.unlink()
    fails(prepare_wider, says=["wider_attribute_test.json is missing"])
