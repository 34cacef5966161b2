"""Data sets from a table of your own."""

import json
import tracemalloc
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import main
import val
from helpers import TINY, make_own, read_targets
from utils import prepare_csv
from utils.data import label_writing
from utils.data.classes import class_names
from utils.data.datasets import DATASETS, dataset_spec
from utils.data.labels import IGNORED, Targets
from utils.data.samples import load_split
from utils.data.stratification import stratify
from utils.data.tables import read_label_table
from utils.runtime.errors import UserError
from utils.weights.contents import load_checkpoint

LISTS = "image,labels\na.png,dog;cat\nb.png,\nc.png,dog\nd.png, cat ; bird\ne.png,bird\n"
CELLS = "image,dog,cat\na.png,1,0\nb.png,0,1\nc.png,,1\nd.png,1.0,0.0\ne.png,0,\n"


@pytest.fixture
def table(workdir):
    """Make the images photos/a.png to e.png; return a function that writes photos/labels.csv."""
    (workdir / "photos").mkdir()
    for name in "abcde":
        Image.new("RGB", (50, 40)).save(workdir / "photos" / f"{name}.png")

    def write(content: str, **options) -> Path:
        path = workdir / "photos" / "labels.csv"
        path.write_text(content, **options)
        return path

    return write


def read_entries(name: str = "mine") -> dict[str, list[int]]:
    """Return the targets of all label files as {image name: target}, with 99 for an unknown label."""
    targets = {}
    for path in Path("data", name).glob("*.json"):
        if path.name != "classes.json":
            targets |= read_targets(path)
    return {Path(path).stem: target for path, target in targets.items()}


def images_of(split: str) -> list[str]:
    """Return the names of the images of a split."""
    return [Path(entry["img_path"]).stem for entry in json.loads(Path(f"data/mine/{split}.json").read_text())]


def test_a_column_of_label_lists(table, command):
    result = command(prepare_csv, table(LISTS), "--dataset", "mine")
    assert result.status == 0, result.err
    assert json.loads(Path("data/mine/classes.json").read_text()) == ["bird", "cat", "dog"]
    assert read_entries() == {"a": [0, 1, 1], "b": [0, 0, 0], "c": [0, 0, 1], "d": [1, 1, 0], "e": [1, 0, 0]}
    assert "no image in test.json has " in result.out
    assert [len(images_of(split)) for split in ("train", "val", "test")] == [3, 1, 1]
    assert "unknown" not in result.out


def test_a_column_per_class_with_unknown_labels(table, command):
    path = table(CELLS.replace("\n", "\r\n"), encoding="utf-8-sig", newline="")
    fractions = ["--test_fraction", 0.4, "--val_fraction", 0]
    result = command(prepare_csv, path, "--dataset", "mine", *fractions)
    assert result.status == 0, result.err
    assert json.loads(Path("data/mine/classes.json").read_text()) == ["dog", "cat"]
    assert read_entries() == {"a": [1, 0], "b": [0, 1], "c": [99, 1], "d": [1, 0], "e": [0, 99]}
    assert "2 of 10 labels are unknown" in result.out
    assert "no images for val.json" in result.out
    assert not Path("data/mine/val.json").exists()
    splits = [load_split(dataset_spec("mine"), split, 40) for split in ("train", "test")]
    assert [len(split) for split in splits] == [3, 2]
    assert sum((split.labels.targets.rows() == IGNORED).sum() for split in splits) == 2


@pytest.mark.slow
def test_unknown_labels_count_in_no_loss(table, command):
    table(CELLS)
    command(prepare_csv, "photos/labels.csv", "--dataset", "mine")
    arguments = ["--dataset", "mine", *TINY, "--model", "resnet18", "--pretrained", "none", "--batch_size", 1]
    assert command(main, *arguments, "--output_dir", "run").status == 0
    losses = [json.loads(line)["train_loss"] for line in Path("run/log.jsonl").read_text().splitlines()]
    assert np.isfinite(losses).all()
    entries = json.loads(Path("data/mine/train.json").read_text())
    unknown = [{"positives": [], "negatives": [], "img_path": entry["img_path"]} for entry in entries]
    Path("data/mine/train.json").write_text(json.dumps(unknown))
    assert command(main, *arguments, "--output_dir", "unknown").status == 0
    assert json.loads(Path("unknown/log.jsonl").read_text().splitlines()[0])["train_loss"] == 0


def test_other_delimiters_and_separators(table, command):
    path = table('image;labels\na.png;"dog, big"\nb.png;cat\nc.png;dog\nd.png;cat, dog\n')
    result = command(prepare_csv, path, "--dataset", "mine", "--separator", ", ", "--val_fraction", 0.5)
    assert result.status == 0, result.err
    assert json.loads(Path("data/mine/classes.json").read_text()) == ["big", "cat", "dog"]


@pytest.mark.parametrize("start", ["", "\n \n"], ids=["at once", "after blank lines"])
def test_a_quoted_name_may_hold_another_delimiter(table, command, start):
    path = table(start + 'image;"dog, big";cat\na.png;1;0\nb.png;0;1\nc.png;1;1\n')
    assert command(prepare_csv, path, "--dataset", "mine").status == 0
    assert json.loads(Path("data/mine/classes.json").read_text()) == ["dog, big", "cat"]


def test_the_split_keeps_the_share_of_every_class():
    rng = np.random.default_rng(0)
    positives = rng.random((1000, 12)) < np.linspace(0.005, 0.5, 12)
    held_out = stratify(Targets.of(positives), 0.2, seed=3)
    assert abs(held_out.mean() - 0.2) < 0.01
    total = positives.sum(axis=0)
    assert (np.abs(positives[held_out].sum(axis=0) - 0.2 * total) <= 1 + 0.02 * total).all()
    assert (held_out == stratify(Targets.of(positives), 0.2, seed=3)).all()
    splits = prepare_csv.random_splits(
        Targets.of(positives), Namespace(val_fraction=0.1, test_fraction=0.3, seed=3)
    )
    for split, fraction in (("train", 0.6), ("val", 0.1), ("test", 0.3)):
        chosen = np.array(splits) == split
        assert abs(chosen.mean() - fraction) < 0.01
        assert (np.abs(positives[chosen].sum(axis=0) - fraction * total) <= 2 + 0.02 * total).all()


@pytest.mark.parametrize("column", [1, 2])
def test_a_column_split_decides_which_images_are_held_out(table, command, column):
    words = dict(image="split", a="train", b="test", c="val", d="train", e="test")
    rows = [line.split(",") for line in LISTS.splitlines()]
    for cells in rows:
        cells.insert(column, words[cells[0].removesuffix(".png")])
    path = table("\n".join(map(",".join, rows)))
    assert command(prepare_csv, path, "--dataset", "mine").status == 0
    assert [images_of(split) for split in ("train", "val", "test")] == [["a", "d"], ["c"], ["b", "e"]]
    assert json.loads(Path("data/mine/classes.json").read_text()) == ["bird", "cat", "dog"]
    assert read_entries()["d"] == [1, 1, 0]
    path.write_text(path.read_text().replace("val", "train"))
    assert command(prepare_csv, path, "--dataset", "mine", "--overwrite").status == 0
    assert not Path("data/mine/val.json").exists()  # nothing of the earlier one is left


def test_an_interruption_leaves_no_labels_of_other_classes(table, command, monkeypatch):
    path, write = table(LISTS), label_writing.write_json_list
    assert command(prepare_csv, path, "--dataset", "mine").status == 0

    def interrupted(file: Path, entries: list) -> None:
        if file.name == "val.json":
            raise KeyboardInterrupt
        write(file, entries)

    monkeypatch.setattr(label_writing, "write_json_list", interrupted)
    path.write_text(LISTS.replace("bird", "horse"))
    assert command(prepare_csv, path, "--dataset", "mine", "--overwrite").status == 130
    assert sorted(path.name for path in Path("data/mine").iterdir()) == ["classes.json", "train.json"]
    assert json.loads(Path("data/mine/classes.json").read_text()) == ["cat", "dog", "horse"]
    with pytest.raises(UserError, match="test.json is missing"):
        load_split(dataset_spec("mine"), "test", 40)


@pytest.mark.parametrize("images", [1, 2, 3, 4])
def test_a_rare_class_keeps_an_image_for_training(images):
    positives = np.kron(np.eye(40, dtype=bool), np.ones((images, 1), bool))
    held_out = stratify(Targets.of(positives), 0.3, seed=0)
    assert (positives[~held_out].sum(axis=0) >= 1).all()
    if images > 1:
        assert abs(held_out.mean() - 0.3) < 0.1


def test_another_seed_makes_another_split():
    positives = np.random.default_rng(0).random((1000, 12)) < 0.2
    held_out = stratify(Targets.of(positives), 0.2, seed=3)
    assert (held_out != stratify(Targets.of(positives), 0.2, seed=4)).any()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", ["a header"]),
        ("image,labels\n", ["rows below"]),
        ("image\na.png\n", ["a header"]),
        ("a.png,1,0\nb.png,0,1\n", ["a header image,labels", "['a.png', '1', '0']"]),
        ("dog,cat\n1,a.png\n", ["a header image,labels", "['dog', 'cat']"]),
        ("imgae,labels\na.png,dog\n", ["if 'imgae' holds the images, name it image"]),
        ("img,file,dog\na.png,a.png,1\n", ["line 2: file is 'a.png'", "if it is not a class, delete it"]),
        ("dog,img,file\n1,a.png,a.png\n", ["'img' and 'file' could both be the column image"]),
        ("image,labels\nz.png,dog\n", ["line 2", "photos/z.png", "--img_dir"]),
        ("image,labels\n../../x.png,dog\n", ["line 2: '../../x.png' is not below photos", "--img_dir"]),
        ("image,labels\n,dog\n", ["line 2"]),
        ("image,labels\na.png,dog,cat\n", ["line 2", "3 cells", "has 2"]),
        ("image,labels\na.png,\nb.png,\n", ["labels.csv", "class names"]),
        ("image,dog,cat\na.png,yes,0\n", ["line 2", "dog is 'yes'", "1, 0 or empty"]),
        ("image,dog,dog\na.png,1,0\n", ["'dog' more than once"]),
        ("image,dog,\na.png,1,0\n", ["column 3 has no name, but line 2 has '0' in it", "delete it"]),
        (",image,labels\n0,a.png,dog\n", ["column 1 has no name", "'0'", "index=False"]),
        ("Unnamed: 0,image,dog\n0,a.png,1\n", ["column 1 has no name", "'0'", "index=False"]),
        ("image,labels,width\na.png,dog;cat,640\n", ["other columns beside 'labels': delete 'width'"]),
        ("image,label,width\na.png,dog;cat,640\n", ["other columns beside 'label': delete 'width'"]),
        ("image,labels,tags\na.png,dog,x\n", ["other columns beside 'labels': delete 'tags'"]),
        ("image,class,w,h\na.png,dog,6,4\n", ["other columns beside 'class': delete 'w', 'h'"]),
        ("image,labels\na.png,[]\n", ["'[]' is a list of Python: write nothing"]),
        ("image,labels,splt\na.png,dog,train\n", ["'splt' is too much", "name it split"]),
        ("image,labels,subset\na.png,dog,Train\n", ["'subset' is too much", "name it split"]),
        ("image,lables\na.png,dog;cat\n", ["line 2: lables is 'dog;cat'", "name it labels"]),
        ("image,objects\na.png,dog;cat\n", ["line 2: objects is 'dog;cat'", "name it labels"]),
        ("image,dog,width\na.png,1,640\n", ["line 2: width is '640'", "if it is not a class, delete it"]),
        ("image,labels,split,Split\na.png,x,train,test\n", ["two columns split, 'split' and 'Split'"]),
        ("image,labels\na.png,dog,cat\n", ["put quotes around", '"dog;person"']),
        ('image,labels\na.png,"dog,cat"\n', ["line 2", "'dog,cat'", "--separator ','", "--separator ';'"]),
        ("image,labels\na.png,dog|cat\n", ["line 2", "'dog|cat'", "--separator '|'"]),
        ("image,labels\na.png,dog\uff0ccat\n", ["line 2", "--separator '\uff0c'"]),
        ("image,labels\na.png,\"['dog', 'cat']\"\n", ["line 2", "is a list of Python: write dog;cat"]),
        ('image,labels\na.png,"[""dog"", ""cat""]"\n', ["is a list of Python: write dog;cat"]),
        ("image,labels\na.png,['big dog' 'cat']\n", ["is a list of Python: write big dog;cat"]),
        ('image,labels\na.png,"[dog, cat]"\n', ["is a list of Python: write dog;cat"]),
        ("image,labels\na.png,dog/cat\nb.png,cat;dog\n", ["'dog/cat'", "--separator '/'"]),
        ("image,labels\na.png,\"{'dog'}\"\n", ["is a list of Python: write dog"]),
        ("image,labels,split\na.png,x,train\n./a.png,x,test\n", ["lines 2 and 3 are one image"]),
        ("image,dog,cat\na.png,1,\n./a.png,0,1\n", ["lines 2 and 3 are one image", "dog is 1 and 0"]),
        ("image,dog\na.png,1\n", ["--test_fraction 0.2 leaves no images"]),
        ("image,labels,split\na.png,x,train\nb.png,x,tset\n", ["line 3", "split is 'tset'", "train, val or"]),
        ("image,labels,split\na.png,x,train\nb.png,x,val\n", ["the column split leaves no images"]),
        ("image,split\na.png,train\nb.png,test\n", ["labels.csv", "class names"]),
        ('image,dog\n"a.png,1\n', ["labels.csv", "not a table in UTF-8"]),
    ],
)
def test_a_malformed_table_is_reported(table, fails, content, says):
    table(content)
    fails(prepare_csv, "photos/labels.csv", "--dataset", "mine", says=says)


HEADERS = [
    *("Image,Labels", " image , labels ", "IMAGE,LABEL", "\u200bimage,labels\u200b", "image,Tags"),
    *("filename,labels", "file_name,labels", "path,label", "Image Path,class", "img,categories", "File,tags"),
    *("image_path,labels", "image,labels,,", "image,labels,Unnamed: 2", "image,,labels"),
]


@pytest.mark.parametrize("header", HEADERS)
def test_the_header_of_label_lists_is_found(table, command, header):
    rows = LISTS.splitlines()[1:]
    if header == "image,,labels":
        rows = [row.replace(",", ",,") for row in rows]
    elif header.endswith((",", "2")):
        rows = [f"{row}{',' * (header.count(',') - 1)}" for row in rows]
    result = command(prepare_csv, table("\n".join([header, *rows])), "--dataset", "mine")
    assert result.status == 0, result.err
    assert json.loads(Path("data/mine/classes.json").read_text()) == ["bird", "cat", "dog"]
    assert read_entries() == {"a": [0, 1, 1], "b": [0, 0, 0], "c": [0, 0, 1], "d": [1, 1, 0], "e": [1, 0, 0]}


@pytest.mark.parametrize("header", ["dog,cat,image", "image,dog,cat,", "path, dog ,cat", "image,class,cat"])
def test_the_header_of_class_columns_is_found(table, command, header):
    cells = [line.split(",") for line in CELLS.splitlines()[1:]]
    if header.startswith("dog"):
        cells = [[*values, name] for name, *values in cells]
    elif header.endswith(","):
        cells = [[*row, ""] for row in cells]
    content = "\n".join([header, *map(",".join, cells)])
    result = command(prepare_csv, table(content), "--dataset", "mine")
    assert result.status == 0, result.err
    first = "class" if "class" in header else "dog"  # a class may be called so if its cells are 1 and 0
    assert json.loads(Path("data/mine/classes.json").read_text()) == [first, "cat"]
    assert read_entries() == {"a": [1, 0], "b": [0, 1], "c": [99, 1], "d": [1, 0], "e": [0, 99]}


def test_the_column_split_takes_the_words_that_people_write(table, command):
    words = ["Train", " TEST", "validation", "training", "valid"]
    lines = [f"{name}.png,dog,{word}" for name, word in zip("abcde", words)]
    result = command(prepare_csv, table("\n".join(["image,labels,Split", *lines])), "--dataset", "mine")
    assert result.status == 0, result.err
    assert [images_of(split) for split in ("train", "val", "test")] == [["a", "d"], ["c", "e"], ["b"]]


def test_rows_of_one_image_are_merged(table, command, workdir):
    (workdir / "photos" / "link.png").symlink_to("b.png")
    rows = ["a.png,dog", "a.png,cat", "./a.png,dog", "b.png,", "d.png,cat", ".//d.png,bird", "link.png,cat"]
    result = command(prepare_csv, table("\n".join(["image,labels", *rows, "c.png,dog"])), "--dataset", "mine")
    assert result.status == 0, result.err
    assert read_entries() == {"a": [0, 1, 1], "b": [0, 1, 0], "c": [0, 0, 1], "d": [1, 1, 0]}
    assert "4 rows name an image that an earlier row has" in result.out
    content = "image,dog,cat\na.png,1,\na.png,,0\nb.png,0,1\nb.png,0,1\nc.png,1,1\n"
    result = command(prepare_csv, table(content), "--dataset", "mine", "--overwrite")
    assert result.status == 0, result.err
    assert read_entries() == {"a": [1, 0], "b": [0, 1], "c": [1, 1]}


def test_names_in_two_unicode_forms_are_one_class(table, command):
    content = "image,labels\na.png,caf\u00e9\nb.png,cafe\u0301\nc.png,\xa0dog \n"
    result = command(prepare_csv, table(content), "--dataset", "mine")
    assert result.status == 0, result.err
    assert json.loads(Path("data/mine/classes.json").read_text()) == ["caf\u00e9", "dog"]
    assert read_entries() == {"a": [1, 0], "b": [1, 0], "c": [0, 1]}


LOOKALIKES = {
    "ice cream": ["ice\xa0cream", "ice  cream", "ice\u200b cream", "ice\u2003cream", "i\u00adce cream"],
    "dog": ["dog\u200b", "\u2060dog", "d\u043eg", "\uff44\uff4f\uff47", "do\ufe0fg", "d\u03bfg"],
    "t-shirt": ["t\u2011shirt", "t\u2010shirt", "t\u2013shirt", "t\u2212shirt"],
    "men's": ["men\u2019s", "men\u02bcs"],
    "\u0628": ["\ufe8f"],  # an Arabic letter and its isolated form
}
PAIRS = [(name, other) for name, others in LOOKALIKES.items() for other in others]


@pytest.mark.parametrize(("name", "other"), PAIRS)
def test_names_that_print_alike_are_named_with_escapes(table, fails, workdir, name, other):
    says = ["labels.csv", f"{name!a}", f"{other!a}", "print alike"]
    table(f"image,labels\na.png,{name}\nb.png,{other}\nc.png,{name}\n")
    fails(prepare_csv, "photos/labels.csv", "--dataset", "mine", says=says)
    table(f"image,{name},{other}\na.png,1,0\nb.png,0,1\n")
    fails(prepare_csv, "photos/labels.csv", "--dataset", "mine", says=says)
    (workdir / "data" / "hand").mkdir(parents=True)
    Path("data/hand/classes.json").write_text(json.dumps([name, "x", other]))
    with pytest.raises(UserError, match=r"classes\.json: the classes .* print alike"):
        class_names("hand")


def test_different_names_stay_different(table, command):
    names = ["dog", "Dog", "dogs", "AC/DC", "R&B", "\u0434\u043e\u043c", "x2", "x\u00b2", "\u00e9", "e"]
    table("image,labels\n" + "".join(f"{image}.png,{';'.join(names)}\n" for image in "abc"))
    assert command(prepare_csv, "photos/labels.csv", "--dataset", "mine").status == 0
    assert json.loads(Path("data/mine/classes.json").read_text()) == sorted(names)


def test_a_separator_that_is_given_is_taken_at_its_word(table, command):
    rows = ['a.png,"dog,cat",train', 'b.png,"cat, bird",train', 'c.png,"tabby|cat",test']
    table("\n".join(["image,labels,split", *rows]))
    divided, whole = ["bird", "cat", "dog", "tabby|cat"], ["cat, bird", "dog,cat", "tabby|cat"]
    for separator, classes in {",": divided, ", ": divided, ";": whole}.items():
        options = ["--dataset", "mine", "--overwrite", "--separator", separator]
        assert command(prepare_csv, "photos/labels.csv", *options).status == 0
        assert json.loads(Path("data/mine/classes.json").read_text()) == classes


def test_an_empty_separator_is_refused(table, fails):
    says = ["argument --separator: it is empty"]
    fails(prepare_csv, table(LISTS), "--dataset", "mine", "--separator", "", says=says)


def test_an_image_with_an_absolute_path_may_be_anywhere(table, command, workdir):
    Image.new("RGB", (50, 40)).save(workdir / "e.png")
    path = table(LISTS.replace("e.png", f"{workdir}/e.png"))
    result = command(prepare_csv, path, "--dataset", "mine", "--img_dir", "photos")
    assert result.status == 0, result.err


def test_an_existing_data_set_is_found_before_the_table_is_read(table, fails, workdir):
    make_own(workdir)
    fails(prepare_csv, table("dog\n"), "--dataset", "mine", says=["data/mine already holds a data set"])


def test_bad_images_are_left_out_on_request(table, command, fails, workdir):
    path = table(LISTS)
    (workdir / "photos" / "b.png").write_bytes(b"not an image")
    (workdir / "photos" / "d.png").write_bytes((workdir / "photos" / "a.png").read_bytes()[:60])
    fails(prepare_csv, path, "--dataset", "mine", "--verify", says=["2 of 5 images are bad", "--skip_bad"])
    options = ["--skip_bad", "--test_fraction", 0.5, "--val_fraction", 0]
    result = command(prepare_csv, path, "--dataset", "mine", *options)
    assert result.status == 0, result.err
    assert read_entries() == {"a": [0, 1, 1], "c": [0, 0, 1], "e": [1, 0, 0]}
    assert "decoded 5 images, 2 of them bad" in result.out
    assert "left out 2 bad images" in result.out
    assert all(f"photos/{name}.png cannot be read" in result.out for name in "bd")
    assert command(prepare_csv, path, "--dataset", "all", *options, "--verify").status == 0
    for name in "ace":
        (workdir / "photos" / f"{name}.png").write_bytes(b"")
    fails(
        prepare_csv, path, "--dataset", "none", *options, says=["--skip_bad leaves nothing of", "labels.csv"]
    )


def test_a_labelled_set_for_a_trained_model(table, command, fails, workdir):
    make_own(workdir, classes=("bird", "cat", "dog", "horse"))
    table("image,labels\na.png,dog;cat\nb.png,\nc.png,horse\n")
    options = ["photos/labels.csv", "--dataset", "field", "--classes_of", "mine"]
    result = command(prepare_csv, *options)
    assert result.status == 0, result.err
    assert sorted(path.name for path in Path("data/field").iterdir()) == ["classes.json", "test.json"]
    assert json.loads(Path("data/field/classes.json").read_text()) == ["bird", "cat", "dog", "horse"]
    assert read_entries("field") == {"a": [0, 1, 1, 0], "b": [0, 0, 0, 0], "c": [0, 0, 0, 1]}
    table("image,dog,horse,split\na.png,1,,test\nb.png,0,1,test\n")
    assert command(prepare_csv, *options, "--overwrite").status == 0
    assert read_entries("field") == {"a": [99, 99, 1, 99], "b": [99, 99, 0, 1]}  # no column: unknown
    fails(prepare_csv, *options[:-2], "--overwrite", says=["no images to train on", "--classes_of"])
    hints = {"Hors": "did you mean 'horse'?", "d\u043eg": "prints like 'dog'", "zebra": "'zebra'"}
    for name, says in hints.items():
        table(f"image,labels\na.png,dog\nb.png,dog;{name}\n")
        fails(prepare_csv, *options, "--overwrite", says=["line 3: --classes_of mine has no class", says])
        table(f"image,cat,{name}\na.png,1,0\n")
        fails(prepare_csv, *options, "--overwrite", says=["labels.csv: --classes_of mine has no class", says])
    Path("run").mkdir()
    Path("run/best.pth").touch()
    fails(prepare_csv, *options[:-1], "run", "--overwrite", says=["run is a folder", "run/best.pth"])
    fails(prepare_csv, *options[:-1], "", "--overwrite", says=["--classes_of", "empty"])
    for given in ("nothing", "../data/mine"):
        says = [f"--classes_of {given}: no such checkpoint", "voc07"]
        fails(prepare_csv, *options[:-1], given, "--overwrite", says=says)


@pytest.mark.slow
def test_val_evaluates_a_labelled_set_made_with_the_classes_of_a_checkpoint(
    trained, shapes_folder, workdir, command, fails
):
    entries = json.loads((shapes_folder / "data/shapes/test.json").read_text())
    names = json.loads((shapes_folder / "data/shapes/classes.json").read_text())
    lines = ["image,label"]
    for entry in entries:
        lines += [f"{shapes_folder / entry['img_path']},{names[c]}" for c in np.flatnonzero(entry["target"])]
    (workdir / "labels.csv").write_text("\n".join(lines))
    best = trained / "best.pth"
    result = command(prepare_csv, "labels.csv", "--dataset", "field", "--classes_of", best)
    assert result.status == 0, result.err
    run = ["--load_from", best, "--num_workers", 0, "--device", "cpu", "--img_size", 40, "--out", "r.json"]
    assert command(val, "--dataset", "field", *run).status == 0
    mine = load_split(dataset_spec("field"), "test", 40).labels.targets.rows()
    assert mine.tolist() == [entry["target"] for entry in entries]
    epochs = map(json.loads, (trained / "log.jsonl").read_text().splitlines())
    best_map = max(epoch["mAP"] for epoch in epochs)
    assert json.loads(Path("r.json").read_text())["mAP"] == pytest.approx(best_map, abs=1e-6)
    torch.save(load_checkpoint(best)["model"], "bare.pth")
    options = ["--dataset", "other", "--classes_of", "bare.pth"]
    fails(prepare_csv, "labels.csv", *options, says=["bare.pth", "no class names"])


def test_other_errors_are_reported(table, fails, command, workdir):
    path = table(LISTS)
    (workdir / "photos" / "latin.csv").write_bytes("image,labels\nä.png,x\n".encode("latin-1"))
    fails(prepare_csv, "photos/latin.csv", "--dataset", "mine", says=["latin.csv", "UTF-8"])
    fails(prepare_csv, "none.csv", "--dataset", "mine", says=["none.csv", "No such file"])
    for name in (*DATASETS, "a/b", "..", ""):
        says = [f"--dataset {name}", "choose a folder name"]
        fails(prepare_csv, path, "--dataset", name, says=says)
    fails(prepare_csv, path, "--dataset", "mine", "--val_fraction", 1.5, says=["--val_fraction", "1.5"])
    shares = ["--val_fraction", 0.5, "--test_fraction", 0.5]
    fails(prepare_csv, path, "--dataset", "mine", *shares, says=["--val_fraction 0.5", "nothing to train on"])
    fails(prepare_csv, path, "--dataset", "mine", "--img_dir", "data", says=["data/a.png"])
    (workdir / "photos" / "b.png").write_bytes(b"not an image")
    fails(prepare_csv, path, "--dataset", "mine", "--verify", says=["1 of 5 images are bad", "b.png"])
    assert command(prepare_csv, path, "--dataset", "mine").status == 0
    fails(prepare_csv, path, "--dataset", "mine", says=["data/mine", "--overwrite"])
    assert command(prepare_csv, path, "--dataset", "mine", "--overwrite").status == 0


def make_wide_table(path: Path, num_classes: int, has_lists: bool) -> None:
    """Write a table of 500 images of a single file each, with two labels each, as lists or as 0 and 1."""
    names = [f"class {c}" for c in range(num_classes)]
    lines = ["image,labels" if has_lists else ",".join(["image", *names])]
    for index in range(500):
        present = {index % num_classes, 7 * index % num_classes}
        cells = [";".join(names[c] for c in present)]
        if not has_lists:
            cells = [str(int(c in present)) for c in range(num_classes)]
        lines.append(",".join([f"{index}.png", *cells]))
    path.write_text("\n".join(lines))


@pytest.mark.parametrize("has_lists", [True, False], ids=["lists", "0 and 1"])
def test_memory_and_label_files_follow_the_labels_and_not_the_classes(workdir, command, has_lists):
    for index in range(500):
        Path(f"{index}.png").touch()
    make_wide_table(Path("wide.csv"), 3000, has_lists)
    make_wide_table(Path("narrow.csv"), 300, has_lists)
    tracemalloc.start()
    try:
        read_label_table(Path("wide.csv"), None, None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * 500 * 3000 / 2  # bytes: half of the references of dense lists, which were held twice
    sizes = []
    for name in ("narrow", "wide"):
        assert command(prepare_csv, f"{name}.csv", "--dataset", name).status == 0
        sizes.append(
            sum(Path(f"data/{name}/{split}.json").stat().st_size for split in ("train", "val", "test"))
        )
    assert sizes[1] < 1.2 * sizes[0]
