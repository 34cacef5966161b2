"""What the stages compute on, how, and how much of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

# By device: the lowest ratio textbook / ours to reach in float32, and in lower precision.
Targets = dict[str, tuple[float, float]]


# The networks of the stage engines: keys of MODELS, with the side of their images.
NETWORKS = {"resnet50": 448, "resnet101": 448, "vit_B16_224": 224, "mobilenet_v2": 224}


class Variant(NamedTuple):
    """A way to run our version.

    amp: as the option --amp. compile: torch.compile's mode, or "".
    """

    amp: str = "off"
    compile: str = ""

    def title(self, device: torch.device) -> str:
        """Return its name in the table; PyTorch's float32 convolutions use TF32 on a GPU."""
        words = [self.amp]
        if self.amp == "off":
            words = ["TF32" if device.type == "cuda" else "float32"]
        if self.compile:
            words.append("compiled" if self.compile == "default" else f"compiled with {self.compile}")
        return ", ".join(words)


@dataclass(frozen=True)
class Sizes:
    """How much work the stages do."""

    img_size: int = 448
    depth: int = 101  # of the ResNet
    scored_images: int = 40_137  # in COCO's val2014
    coco_images: int = 82_783  # in COCO's train2014
    coco_boxes: int = 604_907
    demo_photos: int = 500
    networks: tuple[tuple[str, int], ...] = tuple(NETWORKS.items())  # of the stage engines
    engine_batches: tuple[int, ...] = (1, 8)  # photographs per call
    engine_rounds: int = 3
    command_network: tuple[str, int] = ("resnet18", 224)  # of the stage commands
    command_photos: tuple[int, ...] = (100, 2500)
    command_rounds: int = 2
    shapes: int = 3000  # training images
    seeds: int = 3  # runs of the stage shapes
    rounds: int = 10  # of the stages that take seconds
    long_rounds: int = 2  # of the stages that take minutes


QUICK = Sizes(
    scored_images=4_000,
    coco_images=8_278,
    coco_boxes=60_490,
    demo_photos=16,
    networks=(("resnet18", 224),),
    engine_rounds=2,
    command_photos=(16, 48),
    command_rounds=1,
    seeds=1,
    rounds=3,
    long_rounds=1,
)


@dataclass(frozen=True)
class Settings:
    """What a stage gets.

    folder: for the files that it writes. photos: paths of JPEGs. variants: the ways to run our version in the
    stages train, val, head, demo and shapes; the textbook version has only one.
    batch_size, num_steps, num_workers: of training and validation.
    """

    folder: Path
    photos: list[str]
    device: torch.device = torch.device("cpu")
    variants: tuple[Variant, ...] = (Variant(),)
    batch_size: int = 16
    num_steps: int = 2
    num_workers: int = 0
    sizes: Sizes = Sizes()

    @property
    def amps(self) -> list[str]:
        """The values of --amp among the variants."""
        return list(dict.fromkeys(variant.amp for variant in self.variants))


def find_target(targets: Targets, device: torch.device, amp: str) -> float | None:
    """Return the target on a device in float32 or in lower precision, None if there is none."""
    exact, lower = targets.get(device.type, (None, None))
    return exact if amp == "off" else lower
