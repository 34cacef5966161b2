"""WIDER Attribute: one sample per person, cut out of the image."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from utils import prepare_wider
from utils.datasets import DATASETS, IGNORED, LabelledImages, load_split
from utils.label_files import Labels
from utils.prepare_wider import clip
from utils.runtime.cli import UserError


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
    assert "their box lies outside the image: 2" in result.out
    files = [Path(f"data/wider/{name}_wider.json") for name in ("trainval", "test")]
    trainval, test = (json.loads(file.read_text()) for file in files)
    assert [entry["bbox"] for entry in trainval] == [[20, 10, 30, 20], [0, 30, 14, 10]]
    assert trainval[0]["target"] == [1, 0, 0] + [0] * 11
    assert trainval[1]["target"] == [0] * 14
    assert test[0]["target"] == [1, 0, 99] + [0] * 11
    assert test[1]["target"] == [99] * 14
    assert test[0]["img_path"] == "Dataset/WIDER/Image/test/0--Parade/a b.png"

    spec = DATASETS["wider"]
    dataset = load_split(spec, "test", 32)
    assert (dataset.labels.targets[1] == IGNORED).all()
    image, _, _ = dataset[0, 0, True]
    assert (image == torch.tensor([200, 100, 50]).view(3, 1, 1)).all()  # only the person
    train = load_split(spec, "train", 32, train=True)
    # The training images may be flipped, but are not cropped.
    assert all((train[epoch, 0, True][0] == image).all() for epoch in range(5))
    assert (spec.normalize, spec.decay_step) == ("0.5", 5)
    assert (spec.model, spec.img_size) == ("vit_B16_224", 224)


def test_boxes_are_clipped_to_the_image():
    assert clip([1, 2, 3, 4], 10, 10) == [1, 2, 3, 4]
    assert clip([-3, -4, 5, 6], 10, 10) == [0, 0, 2, 2]
    assert clip([8.6, 8, 9, 9], 10, 10) == [9, 8, 1, 2]
    assert clip([10, 0, 5, 5], 10, 10) is None
    assert clip([3, 3, 0, 5], 10, 10) is None
    assert clip([3, 3, -2, 5], 10, 10) is None


def test_a_box_outside_its_image_is_reported(wider):
    path = str(wider / "Image" / "test" / "0--Parade" / "a b.png").encode()
    labels = Labels(np.array([path]), np.zeros((1, 1), np.int8), np.array([[90, 0, 5, 5]]))
    dataset = LabelledImages(labels, 32)
    with pytest.raises(UserError, match=r"a b.png is 60 x 40: its box .* lies outside"):
        dataset[0, 0, True]


def test_a_malformed_annotation_file_is_reported(wider, fails):
    path = wider / "Annotations" / "wider_attribute_test.json"
    good = path.read_text()

    def refused(content: str, *says: str) -> None:
        path.write_text(content)
        fails(prepare_wider, says=["wider_attribute_test.json", *says])

    refused("{", "JSON")
    refused("{}", "images")
    refused(good.replace('"bbox"', '"box"'), "bbox")
    refused(good.replace("[20, 10, 30, 20]", "[20, 10, 30]"), "WIDER")
    refused(good.replace("[20, 10, 30, 20]", "[NaN, 10, 30, 20]"), "WIDER")
    refused(good.replace("[1, -1, 0", "[1, -1, 7"), "7")
    refused(good.replace("[1, -1, 0, ", "[1, -1, "), "13 attributes")
    refused(good.replace("test/0--Parade", "../test"), "points outside of Image/")
    refused(good.replace("a b.png", "c.png"), "c.png is missing")
    refused('{"images": []}', "annotates no people")
    path.unlink()
    fails(prepare_wider, says=["wider_attribute_test.json is missing"])
