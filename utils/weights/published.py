"""The checkpoints that others have published, by name."""

from dataclasses import dataclass

from utils.weights.google_drive import DRIVE

OPENMMLAB = "https://download.openmmlab.com/mmclassification/v0/csra"


@dataclass(frozen=True)
class Published:
    """A published checkpoint.

    file: its name in torch.hub's folder. num_heads, lam, dataset, mAP (in %, published): None for a backbone
    without a classifier.
    """

    name: str
    url: str
    file: str
    model: str
    num_heads: int | None
    lam: float | None
    dataset: str | None
    mAP: float | None  # noqa: N815  as the field writes it
    source: str


# fmt: off
ROWS = [
    Published("voc07_resnet101", f"{DRIVE}1cQSRI_DWyKpLa0tvxltoH9rM4IZMIEWJ", "csra_voc07_resnet101.pth",
        "resnet101", 1, 0.1, "voc07", 94.7, "authors"),
    Published("voc07_resnet_cut", f"{DRIVE}1bzSsWhGG-zUNQRMB7rQCuPMqLZjnrzFh", "csra_voc07_resnet_cut.pth",
        "resnet101", 1, 0.1, "voc07", 95.2, "authors"),
    Published("coco_resnet101", f"{DRIVE}1e_WzdVgF_sQc--ubN-DRnGVbbJGSJEZa", "csra_coco_resnet101.pth",
        "resnet101", 4, 0.5, "coco", 83.3, "authors"),
    Published("coco_resnet_cut", f"{DRIVE}17FgLUe_vr5sJX6_TT-MPdP5TYYAcVEPF", "csra_coco_resnet_cut.pth",
        "resnet101", 6, 0.4, "coco", 85.6, "authors"),
    Published("resnet101_cutmix", f"{DRIVE}1T4AxsAO2tszvhn62KFN5kaknBtBZIpDV", "CutMix_ResNet101.pth",
        "resnet101", None, None, None, None, "authors"),
    Published("voc07_resnet101_mmpretrain",
        f"{OPENMMLAB}/resnet101-csra_1xb16_voc07-448px_20220722-29efb40a.pth",
        "resnet101-csra_1xb16_voc07-448px_20220722-29efb40a.pth",
        "resnet101", 1, 0.1, "voc07", 94.98, "mmpretrain"),
]
# fmt: on
PUBLISHED = {row.name: row for row in ROWS}
FIELDS = ("name", "dataset", "model", "num_heads", "lam", "mAP", "source", "url")


def format_published() -> str:
    """Return the table of published checkpoints, with a line per checkpoint."""
    rows = [FIELDS, *([cell(getattr(row, column)) for column in FIELDS] for row in PUBLISHED.values())]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(word.ljust(width) for word, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join(lines)


def cell(value: object) -> str:
    """Return a value as it stands in the table."""
    return "-" if value is None else str(value)
