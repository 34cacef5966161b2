"""Files that are not what their names promise: names in the other Unicode form, and Git LFS pointers."""

import json
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

import demo
import main
import val
from helpers import OWN, TINY, make_own
from utils import evaluation, prepare_csv
from utils.checkpoint import load_model
from utils.data.datasets import dataset_spec
from utils.data.decoding import load_image
from utils.data.samples import load_split
from utils.runtime.errors import UserError
from utils.runtime.paths import existing_spelling

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
FORMS = [("NFC", "NFD"), ("NFD", "NFC")]


def spelled(form: str, text: str) -> str:
    return unicodedata.normalize(form, text)


@pytest.mark.parametrize(("asked", "stored"), FORMS)
def test_a_table_may_spell_accents_in_the_other_form(workdir, command, asked, stored):
    folder = workdir / spelled(stored, "Zoë")
    folder.mkdir()
    for name in ("é", "ü", "plain"):
        Image.new("RGB", (40, 40)).save(folder / spelled(stored, f"{name}.png"))
    rows = [f"Zoë/{name}.png,{label}\n" for name, label in (("é", "a"), ("ü", "b"), ("plain", "a"))]
    Path("t.csv").write_text(spelled(asked, f"image,labels\n{''.join(rows)}"), encoding="utf-8")
    result = command(prepare_csv, "t.csv", "--dataset", "mine", "--val_fraction", 0, "--verify")
    assert result.status == 0, result.err
    entries = [*json.loads(Path("data/mine/train.json").read_text())]
    entries += json.loads(Path("data/mine/test.json").read_text())
    assert all(Path(entry["img_path"]).is_file() for entry in entries)
    assert load_split(dataset_spec("mine"), "train", 40)[0, 0, True].image.shape == (3, 40, 40)


@pytest.mark.parametrize(("asked", "stored"), FORMS)
def test_rows_that_name_a_file_in_both_forms_are_one_image(workdir, command, asked, stored):
    for name in ("é.png", "b.png"):
        Image.new("RGB", (40, 40)).save(spelled(stored, name))
    names = [spelled(form, "é.png") for form in (asked, stored)]
    Path("t.csv").write_text(
        f"image,labels,split\n{names[0]},a,test\n{names[1]},b,test\nb.png,a,train\n", "utf-8"
    )
    result = command(prepare_csv, "t.csv", "--dataset", "mine")
    assert result.status == 0, result.err
    (entry,) = json.loads(Path("data/mine/test.json").read_text())
    assert entry == {"positives": [0, 1], "img_path": spelled(stored, "é.png")}


@pytest.mark.parametrize(("asked", "stored"), FORMS)
def test_a_label_file_may_spell_accents_in_the_other_form(workdir, asked, stored):
    entries = make_own(workdir)
    for entry in entries:
        path = Path(entry["img_path"])
        path.rename(path.with_name(spelled(stored, f"é{path.name}")))
        entry["img_path"] = str(path.with_name(spelled(asked, f"é{path.name}")))
    Path("data/mine/train.json").write_text(json.dumps(entries))
    images = load_split(dataset_spec("mine"), "train", 40)
    assert [images[0, row, True].row for row in range(4)] == [0, 1, 2, 3]


def test_a_name_keeps_its_form_if_a_file_has_it_or_none_has(workdir):
    both = [spelled(form, "é.png") for form in ("NFC", "NFD")]
    assert [existing_spelling(name) for name in both] == both
    for name in both:
        Path(name).touch()
    assert [existing_spelling(name) for name in both] == both
    with pytest.raises(UserError, match="ü.png is missing"):
        load_image("ü.png")


def test_a_git_lfs_pointer_is_named_as_one(workdir, trained, command, fails):
    for name in ("a.jpg", "model.pth", "scores.npz", "t.csv", "thresholds.json"):
        Path(name).write_text(POINTER)
    way_out = "is a Git LFS pointer, not the file itself: run `git lfs pull`"
    for call in (load_image, load_model):
        with pytest.raises(UserError, match="a.jpg is a Git LFS pointer"):
            call("a.jpg")
    label = ["--load_from", trained / "best.pth", "--device", "cpu", "--num_workers", 0, "--img_dir", "a.jpg"]
    assert f"skipped: a.jpg {way_out}" in command(demo, *label).err
    fails(demo, *label, "--threshold", "thresholds.json", says=[f"thresholds.json {way_out}"])
    fails(demo, "--load_from", "model.pth", "--img_dir", "a.jpg", says=[f"model.pth {way_out}"])
    fails(val, "--load_from", "model.pth", says=[f"model.pth {way_out}"])
    fails(evaluation, "scores.npz", says=[f"scores.npz {way_out}"])
    fails(prepare_csv, "t.csv", "--dataset", "mine", says=[f"t.csv {way_out}"])
    entries = make_own(workdir)
    backbone = ["--model", "resnet18", "--cutmix", "model.pth", "--output_dir", "run"]
    fails(main, "--dataset", "mine", *TINY, *backbone, says=[f"model.pth {way_out}"])
    Path(entries[0]["img_path"]).write_text(POINTER)
    own = [*OWN, *TINY, "--output_dir", "run"]
    fails(main, *own, says=[f"0.png {way_out}"])
    fails(main, *own, "--num_workers", 1, says=[f"0.png {way_out}"])
    Path("data/mine/train.json").write_text(POINTER)
    fails(main, *own, says=[f"train.json {way_out}"])
