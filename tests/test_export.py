"""Exported files have the same outputs as the checkpoint."""

import importlib.util
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import export
from helpers import REPOSITORY
from pipeline import vit_csra
from pipeline.models import build
from utils.checkpoint import load_model
from utils.data.classes import class_names
from utils.runtime.errors import UserError
from utils.weights.contents import load_checkpoint


def outputs(path: Path, images: torch.Tensor) -> torch.Tensor:
    """Return the logits of a checkpoint for images in [0, 1]."""
    with torch.inference_mode():
        return load_model(path, device="cpu")(images)


@pytest.mark.slow
def test_pt2_has_the_logits_and_class_names(trained, command, tmp_path):
    options = ["--load_from", trained / "best.pth", "--dynamic_batch"]
    result = command(export, *options, "--out", tmp_path / "m.pt2")
    assert result.status == 0, result.err
    files = {"classes.json": ""}
    network = torch.export.load(tmp_path / "m.pt2", extra_files=files).module()
    images = torch.rand(5, 3, 40, 40)
    torch.testing.assert_close(network(images), outputs(trained / "best.pth", images), rtol=0, atol=1e-5)
    assert json.loads(files["classes.json"]) == load_checkpoint(trained / "best.pth")["classes"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("model", "suffix"), [("vit_B16_224", "onnx"), ("vit_B16_224", "pt2"), ("mobilenet_v3_small", "pt2")]
)
def test_exported_files_take_batches_of_any_size(command, tmp_path, monkeypatch, suffix, model):
    """export.py compares batches of 1 and 3 images with the checkpoint before it writes the file."""
    pytest.importorskip("onnxscript")
    monkeypatch.setitem(vit_csra.VITS, "vit_B16_224", (2, 2, 768, 16))
    state = build(model, 2, 0.3, 20, 64).state_dict()
    config = {"model": model, "lam": 0.3, "img_size": 64}
    names = class_names("voc07")
    torch.save({"model": state, "config": config, "classes": names, "record": {}}, tmp_path / "m.pth")
    out = tmp_path / f"m.{suffix}"
    result = command(export, "--load_from", tmp_path / "m.pth", "--out", out, "--dynamic_batch")
    assert result.status == 0, result.err
    assert "batches of any size" in result.out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_onnx_works_with_the_example_in_the_documents(
    trained, shapes, command, tmp_path, monkeypatch, capsys
):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    options = ["--dynamic_batch", "--probabilities"]
    result = command(export, "--load_from", trained / "best.pth", "--out", tmp_path / "model.onnx", *options)
    assert result.status == 0, result.err
    assert "differ by up to" in result.out
    with Image.open("data/shapes/images/test/00000.jpg") as image:
        image.save(tmp_path / "photo.jpg", quality=100)
    monkeypatch.chdir(tmp_path)
    document = (REPOSITORY / "docs/export.md").read_text()
    example = re.search(r"```python\n(import json\n.*?)```", document, re.DOTALL)
    exec(example.group(1), {})
    lines = capsys.readouterr().out.splitlines()
    with Image.open("photo.jpg") as image:
        pixels = np.asarray(image.convert("RGB").resize((40, 40), Image.Resampling.BILINEAR))
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    scores = outputs(trained / "best.pth", images).sigmoid()[0].tolist()
    names = load_checkpoint(trained / "best.pth")["classes"]
    assert lines == [f"{name} {score:.2f}" for name, score in zip(names, scores)]


@pytest.mark.slow
def test_bad_files_and_missing_packages_are_reported(workdir, trained, fails, tmp_path, monkeypatch):
    checkpoint = ["--load_from", trained / "best.pth"]
    fails(export, *checkpoint, "--out", tmp_path / "m.pth", says=["m.pth", ".onnx or .pt2"])
    fails(export, *checkpoint, "--out", "/proc/m.pt2", says=["--out", "/proc"])
    fails(export, "--load_from", tmp_path / "x.pth", "--out", tmp_path / "m.pt2", says=["x.pth"])
    monkeypatch.setattr(export, "TOLERANCE", 0)
    fails(export, *checkpoint, "--out", tmp_path / "m.pt2", says=["differ", "nothing is written"])
    assert not (tmp_path / "m.pt2").exists()
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnx" else find_spec(name))
    fails(export, *checkpoint, "--out", tmp_path / "m.onnx", says=["pip install onnx onnxscript"])


@pytest.mark.parametrize("size", [0.5, 1e4])
def test_outputs_are_compared_by_their_size(size, capsys):
    def network(images):
        return images.new_full((len(images), 3), size)

    export.compare_outputs(network, lambda images: network(images) + 5e-5 * max(1, size), 8, [1, 3])
    assert "differ by up to" in capsys.readouterr().out
    for wrong in (2e-4 * max(1, size), math.nan):
        with pytest.raises(UserError, match="nothing is written"):
            export.compare_outputs(network, lambda images, wrong=wrong: network(images) + wrong, 8, [1])


def test_a_large_output_does_not_excuse_a_small_one():
    outputs = torch.tensor([[-1000.0, 0.2, 0.0]])
    wrong = outputs + torch.tensor([[0.0, 0.0, 0.001]])
    export.compare_outputs(lambda images: outputs, lambda images: outputs * 1.00001, 8, [1])
    with pytest.raises(UserError, match="nothing is written"):
        export.compare_outputs(lambda images: outputs, lambda images: wrong, 8, [1])
