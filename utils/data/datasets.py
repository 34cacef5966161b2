"""The data sets: what differs between them, and where their label files lie."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from utils.data.label_files import UNKNOWN
from utils.data.labels import IGNORED
from utils.runtime.errors import UserError

# What the numbers in a label file mean. VOC's 0 in the test file: only difficult objects of the class.
VALUES = {1: 1, 0: 0, UNKNOWN: IGNORED}
VOC_TEST = {1: 1, -1: 0, 0: IGNORED}


@dataclass(frozen=True)
class DatasetSpec:
    """What differs between data sets.

    train, val, test: label files data/<folder>/<name>.json. If there is a val.json, best.pth is chosen on it,
    else on the test images. prepare: the script in utils/ that makes the train and the test file.
    test_values: maps each number in the test file to its meaning: 1 positive, 0 negative, or IGNORED.
    unknown_is_negative: whether metrics other than mAP count an ignored label as negative, see `evaluate`.
    crop: whether training images are cropped at random; else they are only flipped.
    exif: whether the EXIF orientation is applied; the published figures were computed without it.
    normalize: how pixels are normalised by default, a key of NORMALIZATION in pipeline/network.py.
    model, pretrained, img_size, total_epoch, decay_step: defaults of main.py's options; decay_step None is
    two thirds of the run.
    """

    folder: str
    train: str = "train"
    test: str = "test"
    prepare: str = ""
    test_values: dict[int, int] = field(default_factory=lambda: VALUES)
    val: str = "val"
    unknown_is_negative: bool = False
    crop: bool = True
    exif: bool = False
    normalize: str = "none"
    model: str = "resnet101"
    pretrained: str = "imagenet"
    img_size: int = 448
    total_epoch: int = 30
    decay_step: int | None = 4


# fmt: off
DATASETS = {
    "voc07": DatasetSpec("voc07", "trainval_voc07", "test_voc07", "prepare_voc.py", VOC_TEST),
    "voc12": DatasetSpec("voc12", "train_voc12", "val_voc12", "prepare_voc.py --year 2012", VOC_TEST),
    "coco": DatasetSpec("coco", "train_coco2014", "val_coco2014", "prepare_coco.py", decay_step=5),
    "coco2017": DatasetSpec("coco", "train_coco2017", "val_coco2017", "prepare_coco.py --year 2017",
        decay_step=5),
    "wider": DatasetSpec("wider", "trainval_wider", "test_wider", "prepare_wider.py", crop=False,
        normalize="0.5", unknown_is_negative=True, model="vit_B16_224", img_size=224, decay_step=5),
    "shapes": DatasetSpec("shapes", prepare="prepare_shapes.py", model="resnet18", pretrained="none",
        img_size=64, total_epoch=4),
    "nuswide": DatasetSpec("nuswide", prepare="prepare_nuswide.py", decay_step=5),
    # An epoch of all its images has as many steps as 100 of COCO.
    "openimages": DatasetSpec("openimages", prepare="prepare_openimages.py", img_size=224, total_epoch=10,
        decay_step=None),
}
# fmt: on
# A data set that a user adds. It may be small, and then an epoch has few steps: with a drop every 4 epochs,
# the rate would be too low before the network has learned much. It drops once, after two thirds of the run.
OWN = DatasetSpec("", exif=True, decay_step=None)
DEFAULT_DATASET = "voc07"


def is_folder_name(name: str) -> bool:
    """Return whether data/<name>/ can be the folder of a data set: one visible folder, not a path."""
    return name != "" and not name.startswith(".") and Path(name).name == name


def dataset_spec(name: str) -> DatasetSpec:
    """Return the DatasetSpec of a name or of a folder data/<name>/; UserError if there is neither."""
    if name in DATASETS:
        return DATASETS[name]
    if not is_folder_name(name) or not Path("data", name).is_dir():
        raise UserError(f"--dataset {name}: not one of {', '.join(DATASETS)}, nor a folder data/{name}/")
    return replace(OWN, folder=name)


def preparer(folder: str) -> str:
    """Return the script in utils/ that makes data/<folder>/, "" for a data set of the user."""
    return next((spec.prepare for spec in DATASETS.values() if spec.folder == folder), "")


def label_file(spec: DatasetSpec, split: str) -> Path:
    """Return the path of the label file of a split, "train", "val" or "test"."""
    return Path("data", spec.folder, f"{getattr(spec, split)}.json")
