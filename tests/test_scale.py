"""benchmarks/scale.py: every stage runs in a tiny form, and the table shows how the costs grow."""

import json

import pytest

from benchmarks import scale, scale_stages
from benchmarks.timing import Usage
from narrow import WIDE

TINY = scale.Sizes(images=(40, 60), classes=(2, 4), num_images=40, labelled=(2,), heads=(2,))


@pytest.mark.slow
def test_every_stage_runs(tmp_path, monkeypatch):
    """Stages that call functions run in this process, because each new one imports torch."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torchvision.models.resnet18", WIDE)  # as the commands have it
    monkeypatch.setattr(scale_stages, "NUM_WORKERS", 1)
    monkeypatch.setattr(scale_stages, "NUM_FEATURES", 8)
    monkeypatch.setattr(scale, "run_stage", lambda folder, stage, *words: scale_stages.STAGES[stage](*words))
    rows = list(scale.measure_all(tmp_path, TINY))
    assert [row.size for row in rows if row.stage == "prepare_csv"] == ["40 images", "60 images"]
    assert len({row.stage for row in rows}) == 11
    assert all(row.seconds > 0 and row.memory > 0 for row in rows)
    labels = json.loads((tmp_path / "data/classes_4/train.json").read_text())
    assert len(labels) == 24  # a fifth is for val.json, and a fifth for the test
    assert {c for entry in labels for c in entry["positives"]} == {0, 1, 2, 3}
    assert len((tmp_path / "labelled_2.csv").read_text().splitlines()) == 3


def test_growth_is_relative_to_the_smaller_size():
    costs = {10: Usage(1.0, 100), 100: Usage(8.0, 150), 200: Usage(16.0, 300)}
    by_size = list(scale.rows_of("evaluate", "images", list(costs), costs.__getitem__, follows_size=True))
    assert [row.growth for row in by_size] == [None, 8.0, 2.0]
    assert [row.expected_growth for row in by_size] == [None, 10.0, 2.0]
    assert [row.memory_growth for row in by_size] == [None, 1.5, 2.0]
    constant = list(scale.rows_of("prepare", "classes", [10, 100], costs.__getitem__, follows_size=False))
    assert [row.expected_growth for row in constant] == [None, 1.0]
    assert scale.format_row(by_size[1]) == "| evaluate | 100 images | 8 | × 8 | × 10 | 150 | × 1.5 |"


def test_the_peak_is_that_of_this_process():
    before = scale_stages.peak_memory()
    block = bytearray(64 * 2**20)
    assert scale_stages.peak_memory() >= before
    assert scale_stages.peak_memory() >= len(block) / 2**20
