"""Label files, samples, their order, and the memory of worker processes."""

import itertools
import json
import multiprocessing
import sys
import tracemalloc
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import REPOSITORY, make_own
from utils.data import loaders
from utils.data.classes import class_names
from utils.data.datasets import DATASETS, VALUES, DatasetSpec, dataset_spec
from utils.data.label_files import read_labels
from utils.data.labels import IGNORED
from utils.data.loaders import EvaluationLoader, TrainingLoader
from utils.data.order import EvaluationBatches, SampleKey, TrainingBatches
from utils.data.samples import LabelledImages, load_split, to_float
from utils.runtime.errors import UserError

CPU = torch.device("cpu")


def write_labels(path: Path, *targets: list[int]) -> Path:
    path.write_text(json.dumps([{"target": t, "img_path": f"{i}.jpg"} for i, t in enumerate(targets)]))
    return path


def test_built_in_data_sets_have_class_names():
    assert class_names("voc07")[::19] == ["aeroplane", "tvmonitor"]
    assert class_names("coco")[::79] == ["person", "toothbrush"]
    prepared = {"nuswide", "openimages"}  # their preparers write the class names
    folders = [spec.folder for name, spec in DATASETS.items() if name not in prepared]
    assert [len(class_names(folder)) for folder in folders] == [20, 20, 80, 80, 14, 8]
    for folder in ("voc07", "coco", "shapes", "voc12", "wider"):
        assert (REPOSITORY / "data" / folder / "classes.json").exists()


def test_difficult_objects_of_voc_are_ignored_in_the_test_set(tmp_path):
    spec = DATASETS["voc07"]
    labels = read_labels(write_labels(tmp_path / "a.json", [1, 0, -1]), 3, spec.test_values)
    assert labels.targets.rows().tolist() == [[1, IGNORED, 0]]
    labels = read_labels(write_labels(tmp_path / "b.json", [1, 0, 0]), 3, VALUES)
    assert labels.targets.rows().tolist() == [[1, 0, 0]]


def test_unknown_labels_are_ignored(tmp_path):
    labels = read_labels(write_labels(tmp_path / "a.json", [1, 0, 99]), 3, DatasetSpec("mine").test_values)
    assert labels.targets.rows().tolist() == [[1, 0, IGNORED]]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "JSON list"),
        ("{}", "JSON list"),
        ("[]", "empty"),
        ("[1]", "entry 0"),
        ('[{"target": [1, 0]}]', "entry 0"),
        ('[{"img_path": "a.jpg"}]', "entry 0"),
        ('[{"target": [1, 0], "img_path": 3}]', "entry 0"),
        ('[{"target": [1, 0], "img_path": ""}]', "entry 0"),
        ('[{"target": 1, "img_path": "a.jpg"}]', "entry 0"),
        (
            '[{"target": [1, 0], "img_path": "a"}, {"target": [1], "img_path": "a"}]',
            "entry 1.*1 targets for 2 classes",
        ),
        ('[{"target": [1, 2], "img_path": "a.jpg"}]', "targets of 0, 1"),
        ('[{"target": [1, 0.5], "img_path": "a.jpg"}]', "targets of 0, 1"),
        ('[{"target": [1, "0"], "img_path": "a.jpg"}]', "targets of 0, 1"),
        ('[{"target": [1, [0]], "img_path": "a.jpg"}]', "targets of 0, 1"),
        ('[{"target": [1, 0], "img_path": "\\ud800.jpg"}]', "entry 0"),
    ],
)
def test_a_malformed_label_file_is_reported(tmp_path, content, says):
    path = tmp_path / "train.json"
    path.write_text(content)
    with pytest.raises(UserError, match=says) as error:
        read_labels(path, 2, {1: 1, 0: 0})
    assert "train.json" in str(error.value)


@pytest.mark.parametrize("content", ["{", "{}", "[]", "[1]", '["a", "a"]', '["a", ""]'])
def test_malformed_class_names_are_reported(workdir, content):
    make_own(workdir)
    Path("data/mine/classes.json").write_text(content)
    with pytest.raises(UserError, match="classes.json"):
        class_names("mine")


@pytest.mark.parametrize("name", ["می\u200cشود", "New\xa0York", "\U0001f469\u200d\U0001f52c"])
def test_class_names_may_be_in_any_script(workdir, name):
    make_own(workdir)
    Path("data/mine/classes.json").write_text(json.dumps([name, "b"]))
    assert class_names("mine") == [name, "b"]


def test_label_files_may_have_a_byte_order_mark_and_other_alphabets(tmp_path):
    path = tmp_path / "train.json"
    path.write_text('[{"target": [1], "img_path": "küche/猫 1.jpg"}]', encoding="utf-8-sig")
    assert read_labels(path, 1, {1: 1, 0: 0}).paths[0] == "küche/猫 1.jpg"


def test_a_folder_in_data_is_a_data_set(workdir):
    make_own(workdir)
    dataset = load_split(dataset_spec("mine"), "test", img_size=32)
    image, target, index = dataset[0, 3, True]
    assert (tuple(image.shape), image.dtype, index) == ((3, 32, 32), torch.uint8, 3)
    assert target.tolist() == [0, 1]
    assert (dataset.labels.targets.rows() == 1).sum(axis=0).tolist() == [2, 2]


@pytest.mark.parametrize("name", ["", "other", "../data/mine", ".", ".."])
def test_an_unknown_data_set_is_refused(workdir, name):
    make_own(workdir)
    with pytest.raises(UserError, match="voc07, voc12, coco"):
        dataset_spec(name)


def test_a_missing_image_is_found_before_training(workdir):
    make_own(workdir)
    Path("2.png").unlink()
    with pytest.raises(UserError, match=r"2\.png.* is missing \(1 of 4"):
        load_split(dataset_spec("mine"), "train", img_size=32)


def test_a_sample_depends_only_on_seed_epoch_and_index(shapes):
    def sample(seed: int, epoch: int, index: int) -> torch.Tensor:
        return load_split(DATASETS["shapes"], "train", 40, train=True, seed=seed)[epoch, index, True][0]

    first = sample(0, 1, 2)
    load_split(DATASETS["shapes"], "train", 40, train=True)[5, 7, True]
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(sample(0, 1, 2), first)
    assert not torch.equal(sample(1, 1, 2), first)
    assert not torch.equal(sample(0, 2, 2), first)


def test_the_order_depends_only_on_seed_and_epoch():
    def order(seed: int, epoch: int) -> list[SampleKey]:
        batches = TrainingBatches(50, 16, seed)
        batches.set_epoch(epoch)
        return list(itertools.chain(*batches))

    assert order(0, 3) == order(0, 3)
    assert sorted(order(0, 3)) == [(3, index, True) for index in range(50)]
    assert [i for _, i, _ in order(0, 3)] != [i for _, i, _ in order(0, 4)]
    assert order(0, 3) != order(1, 3)
    assert list(EvaluationBatches(3, 2)) == [[(0, 0, True), (0, 1, True)], [(0, 2, True)]]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_processes_share_each_batch_of_training(world_size):
    alone = list(TrainingBatches(14, 12, seed=0))
    shares = [TrainingBatches(14, 12, 0, rank, world_size) for rank in range(world_size)]
    assert [len(share) for share in shares] == [2] * world_size
    for batch, *parts in zip(alone, *shares):
        assert all(parts)
        assert sorted(key for part in parts for key in part if key[2]) == sorted(batch)
    fillers = [key for share in shares for batch in share for key in batch if not key[2]]
    assert len(fillers) == max(0, world_size - 2)


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("num_samples", range(1, 21))
def test_the_smallest_share_of_a_process_is_known(num_samples, world_size):
    shares = [TrainingBatches(num_samples, 8, 0, rank, world_size) for rank in range(world_size)]
    smallest = min(len(batch) for share in shares for batch in share)
    assert [share.smallest_share() for share in shares] == [smallest] * world_size


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_processes_take_whole_batches_of_evaluation(world_size):
    alone = list(EvaluationBatches(14, 5))
    shares = [EvaluationBatches(14, 5, rank, world_size) for rank in range(world_size)]
    dealt = [batch for share in shares for batch in share]
    assert sorted(dealt) == sorted(alone)
    assert [len(share) for share in shares] == [len(list(share)) for share in shares]


def test_an_epoch_goes_on_at_any_batch():
    batches = TrainingBatches(14, 5, seed=3)
    batches.set_epoch(2)
    whole = list(batches)
    for start in range(4):
        batches.set_epoch(2, start)
        assert list(batches) == whole[start:]


def test_an_order_takes_little_memory():
    tracemalloc.start()
    try:
        orders = [iter(TrainingBatches(200_000, 16, seed=0)), EvaluationBatches(200_000, 16)]
        next(orders[0])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40 * 200_000  # bytes, for the two; lists of numbers take more than twice that


def test_a_sample_that_does_not_count_has_no_labels(shapes):
    image, target, index = load_split(DATASETS["shapes"], "train", 40, train=True)[0, 4, False]
    assert (image.shape, index) == ((3, 40, 40), 4)
    assert set(target.tolist()) == {IGNORED}


def test_batches_are_in_channels_last_memory(shapes):
    dataset = load_split(DATASETS["shapes"], "train", 40, train=True)
    images, targets, indices = next(iter(TrainingLoader(dataset, 8, 0, CPU)))
    assert images.is_contiguous(memory_format=torch.channels_last)
    for image, target, index in zip(images, targets, indices.tolist()):
        expected = dataset[0, index, True]
        assert torch.equal(image, expected[0])
        assert torch.equal(target, expected[1])


def test_no_sample_is_dropped(shapes):
    loader = TrainingLoader(load_split(DATASETS["shapes"], "train", 40, train=True), 8, 0, CPU)
    batches = [index.tolist() for _, _, index in loader]
    assert [len(batch) for batch in batches] == [8, 8, 4]
    assert sorted(itertools.chain(*batches)) == list(range(20))


@pytest.mark.slow
def test_forked_workers_of_an_evaluation_end_and_all_others_stay(shapes):
    others, stay = set(multiprocessing.active_children()), []
    for make_loader in (EvaluationLoader, TrainingLoader):
        loader = make_loader(load_split(DATASETS["shapes"], "train", 40), 8, 1, CPU)
        list(loader)
        stay.append(bool(set(multiprocessing.active_children()) - others))
        del loader  # ends its worker
    assert stay == [multiprocessing.get_start_method() != "fork", True]


def test_a_process_without_a_batch_of_validation_still_has_its_loader(workdir, monkeypatch):
    entries = make_own(workdir)
    (workdir / "data" / "mine" / "val.json").write_text(json.dumps(entries[:1]))
    monkeypatch.setattr(loaders, "keeps_evaluation_workers", lambda: True)  # as under spawn
    for rank, length in ((0, 1), (1, 0)):
        monkeypatch.setattr(EvaluationBatches.__init__, "__defaults__", (rank, 2))
        args = Namespace(dataset="mine", img_size=40, batch_size=2, num_workers=2, max_pixels=10**8, seed=0)
        made = loaders.make_loaders(args, dataset_spec("mine"), CPU)
        assert made.has_val
        assert (len(made.val.dataset), len(made.val)) == (1, length)
        assert len(made.test.dataset) == 4


def test_pixels_become_floats_from_0_to_1():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    assert to_float(images, CPU).flatten().tolist() == pytest.approx([0, 0.2, 1])


def private_memory() -> int:
    """Return the memory, in bytes, that this process shares with no other."""
    fields = (line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return 1024 * sum(int(field[1]) for field in fields if field[0] in ("Private_Dirty:", "Private_Clean:"))


def read_through(dataset: LabelledImages, queue: multiprocessing.Queue) -> None:
    """Read all labels and paths of a data set, as a worker does; send how much memory that took."""
    before = private_memory()
    total = 0
    for row, path in enumerate(dataset.labels.paths):
        total += int(dataset.labels.targets.row(row)[0]) + len(path)
    queue.put((private_memory() - before, total))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_share_the_labels_in_memory(tmp_path):
    count, target = 150_000, [1] + [0] * 79
    line = json.dumps({"target": target, "img_path": "Dataset/COCO2014/images/train2014/000000000001.jpg"})
    path = tmp_path / "train.json"
    path.write_text("[" + ",\n".join([line] * count) + "]")
    dataset = LabelledImages(read_labels(path, 80, {1: 1, 0: 0}), img_size=32)
    path.unlink()
    assert dataset.labels.targets.shape == (count, 80)
    assert dataset.labels.targets.nbytes + dataset.labels.paths.nbytes < 90 * count

    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    worker = context.Process(target=read_through, args=(dataset, queue))
    worker.start()
    grown, total = queue.get(timeout=120)
    worker.join()
    assert total == count * (1 + len("Dataset/COCO2014/images/train2014/000000000001.jpg"))
    assert grown < 8 * 2**20
