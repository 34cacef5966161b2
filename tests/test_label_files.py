"""Label files by index and dense ones, in memory and on disk, and JSON lists that are read in parts."""

import io
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.data.datasets import VALUES, VOC_TEST
from utils.data.label_entries import Entry, ListedEntries
from utils.data.label_files import is_label_file, read_labels
from utils.data.label_writing import check_label_file, write_label_file, write_labels
from utils.data.labels import IGNORED, Labels, Listed, Paths, Targets, TargetsBuilder, fingerprint
from utils.runtime import json_lists
from utils.runtime.errors import UserError
from utils.runtime.json_lists import read_json_list

ROWS = np.array(
    [[1, 0, 0, 1], [0, 0, 0, 0], [1, IGNORED, IGNORED, 0], [IGNORED, IGNORED, IGNORED, 0]], np.int8
)
ENTRIES: list[Entry] = [
    {"positives": [0, 3], "img_path": "a.jpg"},
    {"target": [0, 0, 0, 0], "img_path": "b.jpg"},
    {"positives": [0], "negatives": [3], "img_path": "c.jpg"},
    {"positives": [], "negatives": [3], "img_path": "d.jpg"},
]
DENSE: list[Entry] = [
    {"target": [99 if value == IGNORED else value for value in row], "img_path": f"{name}.jpg"}
    for row, name in zip(ROWS.tolist(), "abcd")
]


def write(path: Path, entries: list) -> Path:
    path.write_text(json.dumps(entries))
    return path


def test_entries_by_index_and_dense_ones_are_read_alike(tmp_path):
    for entries in (ENTRIES, DENSE):
        labels = read_labels(write(tmp_path / "a.json", entries), 4, VALUES)
        assert labels.targets.rows().tolist() == ROWS.tolist()
        assert list(labels.paths) == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]


def test_indices_may_be_in_any_order_and_no_negatives_are_not_all(tmp_path):
    entries = [
        {"positives": [3, 0], "negatives": [2, 1], "img_path": "a.jpg"},
        {"positives": [2], "negatives": [], "img_path": "b.jpg"},
        {"positives": [2], "img_path": "c.jpg"},
    ]
    rows = read_labels(write(tmp_path / "a.json", entries), 4, VOC_TEST).targets.rows()
    assert rows.tolist() == [[1, 0, 0, 1], [IGNORED, IGNORED, 1, IGNORED], [0, 0, 1, 0]]


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ('"positives": [0], "target": [1, 0, 0]', "target together with positives"),
        ('"negatives": [0], "target": [1, 0, 0]', "target together with positives"),
        ('"positives": [0, 3]', "no class 3.* 0 to 2"),
        ('"positives": [-1]', "no class -1"),
        ('"positives": [0], "negatives": [3]', "no class 3"),
        ('"positives": [0, 1], "negatives": [2, 1]', "class 1 is in positives and in negatives"),
        ('"positives": [1, 2, 1]', "twice"),
        ('"positives": [0], "negatives": [2, 2]', "twice"),
        ('"positives": [true]', "not a list of class indices"),
        ('"positives": [1.0]', "not a list of class indices"),
        ('"positives": ["1"]', "not a list of class indices"),
        ('"positives": 1', "not a list of class indices"),
        ('"positives": null', "not a list of class indices"),
        ('"negatives": [1]', "positives"),
    ],
)
def test_wrong_indices_are_reported(tmp_path, labels, says):
    path = tmp_path / "train.json"
    path.write_text(f'[{{"positives": [], "img_path": "a.jpg"}}, {{{labels}, "img_path": "b.jpg"}}]')
    with pytest.raises(UserError, match=rf"train\.json, entry 1 is not .*positives.*{says}"):
        read_labels(path, 3, VALUES)


def test_a_late_box_is_reported(tmp_path):
    entries = [{"positives": [0], "img_path": "a.jpg"}] * 2 + [
        {"positives": [0], "img_path": "a.jpg", "bbox": [0, 0, 4, 4]}
    ]
    with pytest.raises(UserError, match="entry 2 .*bbox"):
        read_labels(write(tmp_path / "a.json", entries), 3, VALUES)
    with pytest.raises(UserError, match="entry 1 .*bbox"):
        read_labels(write(tmp_path / "a.json", entries[::-1]), 3, VALUES)


@settings(max_examples=200, deadline=None)
@given(rows=st.lists(st.lists(st.sampled_from([0, 1, IGNORED]), min_size=5, max_size=5), max_size=8))
def test_targets_hold_any_labels_in_one_form(rows):
    array = np.array(rows, np.int8).reshape(-1, 5)
    targets = Targets.of(array)
    assert targets.shape == array.shape
    assert targets.rows().tolist() == rows
    assert targets.rows(slice(1, 3)).tolist() == rows[1:3]
    builder = TargetsBuilder(5)
    for index, row in enumerate(rows):
        assert targets.row(index).tolist() == row
        positives, negatives = ([c for c in range(5) if row[c] == value] for value in (1, 0))
        listed = Listed(positives, negatives if IGNORED in row else None)
        assert targets.listed(index) == listed
        builder.add(listed)
    again = builder.build()
    chosen = np.arange(len(rows))[::-2]
    for ours, theirs in ((again, targets), (targets.select(chosen), Targets.of(array[chosen]))):
        for name in ("offsets", "classes", "values", "rest"):
            assert getattr(ours, name).dtype == getattr(theirs, name).dtype
            assert getattr(ours, name).tolist() == getattr(theirs, name).tolist()


def test_paths_may_hold_any_bytes():
    paths = Paths.of(["a.jpg", b"\xff \xc3\xa4.jpg", "猫.jpg"])
    assert [paths.encoded(row) for row in range(3)] == [b"a.jpg", b"\xff \xc3\xa4.jpg", "猫.jpg".encode()]
    assert paths[-1] == "猫.jpg"
    assert list(paths)[1] == "\udcff ä.jpg"
    with pytest.raises(IndexError):
        paths[3]


# What version 1 stored with a run, of which none may be refused when it is resumed.
FINGERPRINTS = [
    (
        "34a827d6f5eb",
        VOC_TEST,
        [
            {"target": [1, 0, -1], "img_path": "Dataset/a/1.jpg"},
            {"target": [-1, -1, 0], "img_path": "Dataset/b/2.jpg"},
            {"target": [0, 0, 1], "img_path": "é 3.jpg"},
        ],
    ),
    (
        "df8034d278dc",
        VALUES,
        [{"target": [0, 0, 0, 1], "img_path": "x/1.jpg"}, {"target": [1, 1, 1, 0], "img_path": "2.jpg"}],
    ),
    (
        "2e35186eed44",
        VALUES,
        [{"target": [99, 99, 1], "img_path": "x/1.jpg"}, {"target": [99, 0, 0], "img_path": "2.jpg"}],
    ),
    (
        "7a4eda048bd0",
        VALUES,
        [
            {"target": [1, 0, 99], "img_path": "x/1.jpg", "bbox": [1.5, -2, 30, 20]},
            {"target": [0, 0, 0], "img_path": "x/1.jpg", "bbox": [0, 0, 5, 5]},
        ],
    ),
]


@pytest.mark.parametrize(("expected", "values", "entries"), FINGERPRINTS, ids=["voc", "coco", "own", "wider"])
def test_fingerprints_are_those_of_earlier_versions(tmp_path, monkeypatch, expected, values, entries):
    path = write(tmp_path / "a.json", entries)
    num_classes = len(entries[0]["target"])
    assert fingerprint(read_labels(path, num_classes, values)) == expected
    monkeypatch.setattr("utils.data.labels.HASHED_AT_ONCE", num_classes)  # several blocks
    assert fingerprint(read_labels(path, num_classes, values)) == expected


@pytest.mark.parametrize("max_hashed", [10**9, 0])
def test_fingerprints_depend_on_all_labels_and_names(tmp_path, monkeypatch, max_hashed):
    monkeypatch.setattr("utils.data.labels.MAX_HASHED", max_hashed)

    def of(rows: np.ndarray, names: str = "abcd", boxes: np.ndarray | None = None) -> str:
        return fingerprint(Labels(Paths.of(f"x/{name}.jpg" for name in names), Targets.of(rows), boxes))

    labels = read_labels(write(tmp_path / "a.json", ENTRIES), 4, VALUES)
    assert fingerprint(labels) == of(ROWS)
    different = {of(ROWS), of(ROWS, "abdc"), of(ROWS, boxes=np.zeros((4, 4), np.int32))}
    for place in np.ndindex(ROWS.shape):
        changed = ROWS.copy()
        changed[place] = 0 if ROWS[place] else 1
        different.add(of(changed))
    assert len(different) == 3 + ROWS.size


def test_label_files_are_known_by_their_start(tmp_path):
    path = tmp_path / "big.json"
    line = json.dumps({"positives": [3], "img_path": "a.jpg"})
    path.write_text("[" + ",\n".join([line] * 100_000) + ", damaged")
    tracemalloc.start()
    try:
        assert is_label_file(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < path.stat().st_size
    for content in (
        '[{"positives": [1]}]',
        '[{"img_path": "a"}]',
        "[1, 2]",
        '{"positives": [], "img_path": 1}',
    ):
        path.write_text(content)
        with pytest.raises(UserError, match="is not from"):
            check_label_file(path)
    check_label_file(write(path, ENTRIES))


def test_a_label_file_is_written_an_entry_a_line_from_a_generator(tmp_path):
    path = tmp_path / "a.json"
    write_label_file(path, iter(ENTRIES))
    assert path.read_text().splitlines()[1:-1] == [
        '{"positives": [0, 3], "img_path": "a.jpg"},',
        '{"target": [0, 0, 0, 0], "img_path": "b.jpg"},',
        '{"positives": [0], "negatives": [3], "img_path": "c.jpg"},',
        '{"positives": [], "negatives": [3], "img_path": "d.jpg"}',
    ]
    assert json.loads(path.read_text()) == ENTRIES

    def broken():
        yield ENTRIES[0]
        raise UserError("a.csv, line 3")

    with pytest.raises(UserError, match=r"a\.csv"):
        write_label_file(path, broken())
    assert json.loads(path.read_text()) == ENTRIES
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_labels_are_counted_in_both_forms(tmp_path, capsys):
    listed = ListedEntries(Paths.of(["a.jpg", "b.jpg", "c.jpg", "d.jpg"]), Targets.of(ROWS))
    for entries in (listed, DENSE, ENTRIES):
        counts = write_labels(tmp_path, ["w", "x", "y", "z"], {"a.json": entries})["a.json"]
        assert (counts.num_images, counts.positives, counts.num_unknown) == (4, [2, 0, 0, 1], 5)
        assert read_labels(tmp_path / "a.json", 4, VALUES).targets.rows().tolist() == ROWS.tolist()
        out = capsys.readouterr().out
        assert "a.json: 4 images, 3 labels" in out
        assert "no image in a.json has x, y\n" in out
        assert out.splitlines()[-4:] == [f"{c}         {n:18}" for c, n in zip("wxyz", [2, 0, 0, 1])]


def test_of_many_classes_without_images_some_are_named(tmp_path, capsys):
    write_labels(
        tmp_path, [f"c{c}" for c in range(50)], {"a.json": [{"positives": [0], "img_path": "a.jpg"}]}
    )
    assert "c20 and 29 others\n" in capsys.readouterr().out


def test_reading_takes_little_more_memory_than_the_labels(tmp_path):
    count, num_classes = 20_000, 2000
    path = tmp_path / "a.json"
    lines = [json.dumps({"positives": [i % num_classes], "img_path": f"{i:07}.jpg"}) for i in range(count)]
    path.write_text("[" + ",\n".join(lines) + "]")
    tracemalloc.start()
    try:
        labels = read_labels(path, num_classes, VALUES)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert labels.targets.nbytes + labels.paths.nbytes < 40 * count
    assert peak < 100 * count + 8 * json_lists.CHUNK


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def parse(text: str, chunk: int) -> list:
    """Parse a JSON list from a file that is read a few characters at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lists, "CHUNK", chunk)
        patch.setattr(json_lists, "check_fetched", lambda path: None)
        patch.setattr("builtins.open", lambda *args, **options: io.StringIO(text))
        return list(read_json_list(Path("a.json")))


@settings(max_examples=200, deadline=None)
@given(values=st.lists(JSON_VALUES, max_size=4), chunk=st.integers(1, 9), indent=st.sampled_from([None, 1]))
def test_a_json_list_is_read_in_parts_as_json_reads_it(values, chunk, indent):
    assert parse(json.dumps(values, indent=indent) + " \n", chunk) == values


BROKEN = [
    "",
    " ",
    "[",
    "[1",
    "[1,",
    "[1,]",
    "[,1]",
    "[1 2]",
    "[1]]",
    "[1] x",
    '["a',
    "[1}",
    "[tru]",
    "[-]",
    "1",
    "{}",
]
BROKEN += ["[" * 100_000, '[{"a": 1, }]', "[1,,2]", "[nul", '[{"a"}]']


@pytest.mark.parametrize("text", BROKEN, ids=lambda text: text[:9])
@pytest.mark.parametrize("chunk", [1, 2**20])
def test_a_broken_json_list_is_refused(text, chunk):
    if len(text) > 1000 and chunk == 1:
        return
    with pytest.raises(UserError, match=r"a\.json(, entry \d)? (is not valid JSON|must be a JSON list)"):
        parse(text, chunk)


def test_a_file_that_is_damaged_at_its_start_is_not_read_to_its_end(monkeypatch, tmp_path):
    monkeypatch.setattr(json_lists, "MAX_ENTRY", 1000)
    path = tmp_path / "a.json"
    path.write_text('[1, "' + 5_000_000 * "x")
    entries = read_json_list(path)
    assert next(entries) == 1
    with pytest.raises(UserError, match="entry 1 is not valid JSON"):
        next(entries)
    path.write_bytes(b"[1,\xff]")
    with pytest.raises(UserError, match="a.json is not valid JSON"):
        list(read_json_list(path))


def test_a_misspelt_field_is_refused(tmp_path):
    """With "negative" for "negatives", unknown labels would silently count as negative."""
    path = tmp_path / "labels.json"
    path.write_text('[{"positives": [0], "negative": [1], "img_path": "a.jpg"}]')
    with pytest.raises(UserError, match="entry 0 .*there is no field 'negative'.*negatives"):
        read_labels(path, 2, VALUES)
