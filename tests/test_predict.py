"""Labelling photographs from Python: load_model(…).predict, and torch.hub."""

import contextlib
import copy
import json
import math
import multiprocessing
import operator
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import demo
from helpers import REPOSITORY
from narrow import WIDE
from pipeline.resnet_csra import ResNet_CSRA
from utils.checkpoint import load_model
from utils.data.classes import class_names
from utils.inference.predictor import LabelSettings, Predictor
from utils.runtime import freed_memory
from utils.runtime.errors import UserError
from utils.weights.building import build_network

NAMES = ("a.jpg", "b.jpg", "turned.png")


@pytest.fixture
def photos(shapes, trained, tmp_path, monkeypatch) -> list[str]:
    """Change to a folder with model.pth and three images, one to be turned; return their paths."""
    shutil.copy(trained / "best.pth", tmp_path / "model.pth")
    for index, name in enumerate(NAMES[:2]):
        shutil.copy(shapes / f"data/shapes/images/test/{index:05d}.jpg", tmp_path / name)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(tmp_path / "a.jpg").crop((0, 0, 40, 25)).save(tmp_path / "turned.png", exif=exif)
    monkeypatch.chdir(tmp_path)
    return list(NAMES)


@pytest.fixture
def wide(photos, trained_wide, monkeypatch) -> None:
    """Let model.pth and this process have a whole ResNet-18, as other processes have."""
    monkeypatch.setattr("torchvision.models.resnet18", WIDE)
    shutil.copy(trained_wide / "best.pth", "model.pth")


def demo_scores(command, *options) -> list[dict[str, float]]:
    """Return what demo.py --json writes for the three images."""
    arguments = ["--img_dir", *NAMES, "--num_workers", 0, "--device", "cpu", "--json", "s.json"]
    result = command(demo, "--load_from", "model.pth", *arguments, *options)
    assert result.status == 0, result.err
    return [entry["scores"] for entry in json.loads(Path("s.json").read_text())]


@pytest.mark.parametrize(
    "options", [{}, {"lam": 0.7}, {"img_size": 64}, {"normalize": "0.5"}], ids=lambda options: str(*options)
)
def test_scores_equal_those_of_demo(photos, command, options):
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    ours = load_model("model.pth", device="cpu", **options).predict(photos)
    expected = demo_scores(command, *words)
    assert [scores == pytest.approx(e, abs=1e-6) for scores, e in zip(ours, expected)] == [True] * 3
    for scores in ours:
        assert list(scores.values()) == sorted(scores.values(), reverse=True)
        assert set(scores) == set(class_names("shapes"))
        assert all(type(score) is float for score in scores.values())
    assert options == {} or ours != load_model("model.pth", device="cpu").predict(photos)


def test_photographs_are_paths_images_or_arrays_one_or_several(photos):
    model = load_model(Path("model.pth"), device="cpu")
    one, _, turned = several = model.predict(photos)
    with Image.open("a.jpg") as image, Image.open("turned.png") as phone:
        array = np.asarray(image)
        alone = model.predict("a.jpg")
        assert alone == pytest.approx(one, abs=1e-6)  # in a batch, sums have another order
        assert model.predict(Path("a.jpg")) == model.predict(image) == alone
        assert model.predict(array) == alone
        assert model.predict(phone) == pytest.approx(turned, abs=1e-6)
        assert model.predict(np.rot90(np.asarray(phone), -1)) == model.predict(phone)
        assert model.predict(["a.jpg", Path("b.jpg"), phone]) == several
        assert model.predict(image.convert("RGBA")) == alone
    assert model.predict(np.stack([array, array])) == model.predict(["a.jpg", "a.jpg"])
    first_two = model.predict(photos[:2])
    assert model.predict(sorted(Path().glob("*.jpg"))) == model.predict(map(str, photos[:2])) == first_two
    assert first_two == [pytest.approx(scores, abs=1e-6) for scores in several[:2]]
    assert model.predict([]) == []


def test_a_threshold_leaves_out_classes(photos):
    model = load_model("model.pth", device="cpu")
    scores = model.predict("a.jpg")
    middle = sorted(scores.values())[4]
    kept = {name: score for name, score in scores.items() if score >= middle}
    assert model.predict("a.jpg", threshold=middle) == kept
    assert len(kept) == 4
    first, second, *rest = scores
    Path("t.json").write_text(json.dumps({first: 1.0, second: 0.0} | dict.fromkeys(rest, 1.0)))
    assert list(model.predict("a.jpg", threshold="t.json")) == [second]
    assert [list(found) for found in model.predict(["a.jpg"], threshold=Path("t.json"))] == [[second]]
    (entry,) = (entry for entry in os.scandir() if entry.name == "t.json")
    assert list(model.predict("a.jpg", threshold=entry)) == [second]
    assert model.predict("a.jpg", threshold=1) == {}
    assert model.predict("a.jpg", threshold=np.float32(1)) == {}
    with pytest.raises(FileNotFoundError, match="gone.json"):
        model.predict("a.jpg", threshold="gone.json")


def test_attention_shows_where_the_network_looks(photos):
    model = load_model("model.pth", img_size=96, device="cpu")
    maps = model.attention("a.jpg")
    assert list(maps) == model.classes
    assert {values.shape for values in maps.values()} == {(3, 3)}
    assert [values.sum() for values in maps.values()] == pytest.approx([1] * 8)
    pixels = torch.from_numpy(np.array(Image.open("a.jpg").resize((96, 96), Image.Resampling.BILINEAR)))
    with torch.inference_mode():
        expected = model.network.classifier.attention_maps(
            model.network.features(pixels.permute(2, 0, 1)[None] / 255)
        )
    np.testing.assert_allclose(np.stack(list(maps.values())), expected[0].numpy(), atol=1e-3)


@pytest.mark.parametrize(
    ("photo", "error", "says"),
    [
        ("gone.jpg", UserError, "gone.jpg is missing"),
        ("model.pth", UserError, "model.pth cannot be read as an image"),
        (np.zeros((4, 5, 4), np.uint8), ValueError, r"uint8 \(H, W, 3\), not uint8 \(4, 5, 4\)"),
        (np.zeros((4, 5, 3)), ValueError, "not float64"),
        (np.zeros((4, 5), np.uint8), ValueError, r"not uint8 \(5,\)"),
        (torch.zeros(3, 4, 5), TypeError, "Tensor"),
    ],
)
def test_what_is_no_photograph_is_refused(photos, photo, error, says):
    with pytest.raises(error, match=says):
        load_model("model.pth", device="cpu").predict(photo)


@pytest.mark.parametrize("threshold", [2, -0.1, float("nan")])
def test_a_threshold_outside_0_to_1_is_refused(photos, threshold):
    with pytest.raises(ValueError, match="not from 0 to 1"):
        load_model("model.pth", device="cpu").predict(["a.jpg"], threshold=threshold)


def test_a_file_with_class_names_takes_no_other_data_set(photos):
    own, *_ = load_model("model.pth").classes
    with pytest.raises(UserError, match=f"class 1 is {own}, not person.*--dataset coco has 80"):
        load_model("model.pth", dataset="coco")


def test_the_device_is_chosen_and_can_be_named(photos):
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert load_model("model.pth").device.type in (expected, "mps")
    assert load_model("model.pth", device="meta").device.type == "meta"


def test_a_copy_of_the_network_predicts_with_its_own_weights(photos):
    model = load_model("model.pth", device="cpu")
    before, other = model.predict("a.jpg"), copy.deepcopy(model)
    with torch.no_grad():
        other.network.classifier.multi_head[0].head.weight.neg_()
    assert other.predict("a.jpg") != before
    assert model.predict("a.jpg") == before


@pytest.mark.slow
def test_a_model_is_pickled_saved_and_sent_to_a_process(wide):
    model = load_model("model.pth", device="cpu", lam=0.7, normalize="0.5", max_pixels=10**6)
    expected = model.predict("a.jpg")
    torch.save(model, "predictor.pt")
    copies = [
        pickle.loads(pickle.dumps(model)),
        copy.deepcopy(model),
        copy.copy(model),
        torch.load("predictor.pt", weights_only=False),
    ]
    for other in copies:
        assert other.predict("a.jpg") == expected
        assert (other.classes, other.options, other.config) == (model.classes, model.options, model.config)
        assert (other.max_pixels, other.network.training) == (10**6, False)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        sent = pool.apply(operator.methodcaller("predict", "a.jpg"), [model])
    assert sent == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_a_network_that_torch_cannot_copy_is_copied(photos):
    """torchvision's networks cut by torch.fx lose their eval mode in a copy, or cannot be pickled."""
    model = load_model("model.pth", device="cpu")
    for name in ("mobilenet_v3_small", "inception_v3"):
        options = {"model": name, "num_heads": 1, "num_cls": 8, "img_size": 96, "lam": 0.1}
        other = Predictor(build_network(options, "none"), model.classes, options, {})
        assert copy.deepcopy(other).predict("a.jpg") == other.predict("a.jpg")
        assert pickle.loads(pickle.dumps(other)).predict("a.jpg") == other.predict("a.jpg")


def test_nan_scores_are_an_error_that_names_the_way_out(photos):
    model = load_model("model.pth", device="cpu")
    with torch.no_grad():
        next(model.network.classifier.parameters()).fill_(math.nan)
    with pytest.raises(UserError, match=r"scores are NaN: the weights are damaged: copy"):
        model.predict("a.jpg")
    squares = [torch.zeros(3, 64, 64, dtype=torch.uint8)]
    with pytest.raises(UserError, match=r"scores are NaN: .*--amp fp16: use bf16 or off.*damaged"):
        model.label_images(squares, LabelSettings(amp="fp16", with_maps=True))


def test_threads_share_a_model(photos):
    model = load_model("model.pth", device="cpu")
    expected = [model.predict(list(NAMES)), model.predict("b.jpg"), model.predict([NAMES[2], NAMES[1]])]
    calls = [list(NAMES), "b.jpg", [NAMES[2], NAMES[1]]] * 4
    filters = list(warnings.filters)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(model.predict, calls))
        maps = list(pool.map(model.attention, ["a.jpg"] * 6))
    assert found == expected * 4
    for other in maps:
        np.testing.assert_array_equal(other["ring"], maps[0]["ring"])
    assert warnings.filters == filters


def test_a_generator_is_consumed_in_batches_and_may_close_its_images(photos):
    """Its photographs are as far ahead as two batches, and each may be gone when the next is asked for."""
    model = load_model("model.pth", device="cpu")
    taken, taken_at_batch = [], []
    label_images = model.label_images

    def watched(images, how):
        taken_at_batch.append(len(taken))
        return label_images(images, how)

    def images():
        buffer = np.empty((48, 48, 3), np.uint8)
        for index in range(60):
            taken.append(index)
            if index % 2:
                with Image.open("a.jpg") as image:
                    yield image
            else:
                with Image.open("a.jpg") as image:
                    buffer[:] = np.asarray(image)
                yield buffer
                buffer[:] = 0

    model.label_images = watched
    found = model.predict(images())
    assert len(found) == 60
    assert all(scores == pytest.approx(found[0], abs=1e-6) for scores in found)
    assert max(found[0].values()) == pytest.approx(max(model.predict("a.jpg").values()), abs=1e-6)
    assert taken_at_batch[:2] == [32, 48]
    taken.clear()
    taken_at_batch.clear()
    assert len(model.predict("a.jpg" for _ in range(60) if taken.append(1) is None)) == 60
    assert taken_at_batch[:2] == [32, 48]


class RecordingLibrary:
    """Stands for glibc, and records how it is configured."""

    def __init__(self):
        self.settings = {}
        self.is_trimmed = False

    def mallopt(self, name, value):
        self.settings[name] = value
        self.is_trimmed = False

    def malloc_trim(self, pad):
        self.is_trimmed = True


@pytest.mark.parametrize("names", [NAMES, [*NAMES, "gone.jpg"]], ids=["whole", "broken"])
def test_memory_is_kept_only_while_a_list_is_labelled(photos, monkeypatch, names):
    """Kept memory makes a list as fast as demo.py; after the list, or an error, glibc has its own values."""
    glibc = RecordingLibrary()
    monkeypatch.setattr(freed_memory, "configurable_glibc", lambda: glibc)
    model = load_model("model.pth", device="cpu")
    model.predict("a.jpg")
    assert glibc.settings == {}
    label_images, within = model.label_images, []
    model.label_images = lambda *args: [within.append(dict(glibc.settings)), label_images(*args)][1]
    with contextlib.suppress(UserError):
        model.predict(names)
    assert within[0] == {freed_memory.M_TRIM_THRESHOLD: -1, freed_memory.M_MMAP_MAX: 0}
    assert glibc.settings[freed_memory.M_MMAP_MAX] == 65536
    assert glibc.settings[freed_memory.M_TRIM_THRESHOLD] == 64 * 2**20
    assert glibc.is_trimmed


def test_on_a_gpu_a_list_leaves_glibc_alone(photos, monkeypatch):
    """No GPU is needed: the photographs are labelled on the CPU, and only the network's device is claimed."""
    glibc = RecordingLibrary()
    monkeypatch.setattr(freed_memory, "configurable_glibc", lambda: glibc)
    model = load_model("model.pth", device="cpu")
    monkeypatch.setattr(model, "label", lambda *args: (result for result in ()))
    with freed_memory.keeping_freed_memory(model.device):
        assert glibc.settings
    glibc.settings.clear()
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    assert model.predict(NAMES) == []
    assert glibc.settings == {}


def test_a_photograph_that_cannot_be_read_ends_a_list(photos):
    model = load_model("model.pth", device="cpu")
    num_threads = threading.active_count()
    with pytest.raises(UserError, match="gone.jpg is missing") as error:
        model.predict([*NAMES, "gone.jpg", "a.jpg"])
    assert threading.active_count() == num_threads, error  # also while the error is kept
    with pytest.raises(ValueError, match="not float64"):
        model.predict(["a.jpg", np.zeros((4, 5, 3))])


def test_an_unknown_argument_is_refused(photos):
    with pytest.raises(TypeError, match="lamda"):
        load_model("model.pth", lamda=0.2)


@pytest.mark.slow
def test_torch_hub_loads_from_any_folder(wide):
    """In a process that does not know where the project is, a file without class names, too."""
    torch.save(ResNet_CSRA(1, 0.1, 20, depth=18).state_dict(), "bare.pth")
    script = """
import json, sys, torch
load = lambda *args, **options: torch.hub.load(sys.argv[1], "csra", *args, source="local", **options)
found = load("model.pth", device="cpu").predict("a.jpg")
voc = load("bare.pth", dataset="voc07", img_size=64, lam=0.2, device="cpu")
names = list(voc.predict("a.jpg"))
print(json.dumps([found, sorted(names), voc.options["lam"]]))
"""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    process = [sys.executable, "-c", script, REPOSITORY]
    result = subprocess.run(process, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    found, names, lam = json.loads(result.stdout.splitlines()[-1])
    assert found == pytest.approx(load_model("model.pth", device="cpu").predict("a.jpg"), abs=1e-6)
    assert (names, lam) == (sorted(class_names("voc07")), 0.2)


def test_the_example_in_the_readme_runs(photos, shapes_folder, capsys):
    folder = Path("checkpoint/shapes_resnet18_h1_lam0.1")
    folder.mkdir(parents=True)
    shutil.copy("model.pth", folder / "best.pth")
    Path("data").symlink_to(shapes_folder / "data")
    example = re.search(r"## Python\n+```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    variables = {}
    exec(example.group(1), variables)
    assert "'heart': " in capsys.readouterr().out
    assert variables["where"].sum() == pytest.approx(1)
