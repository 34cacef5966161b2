"""Export a checkpoint to ONNX or to torch.export's format, to run without this project.

python export.py --load_from MODEL.pth --out model.onnx
"""

if __name__ == "__main__":
    import utils.runtime.quiet_interrupt  # first, see there

import argparse
import importlib.util
import json
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import utils.runtime.passive_waiting  # before torch

import torch
from torch import Tensor, nn

import utils.runtime.torchvision_alone  # noqa: F401  before torchvision
from utils.command_line import options
from utils.command_line.load_from import complete_options, load_model_for
from utils.inference.outputs import Forward
from utils.runtime.arguments import Parser, given_path
from utils.runtime.errors import UserError
from utils.runtime.files import atomic_write
from utils.runtime.output_checks import check_file, check_replaceable
from utils.runtime.script import run_script

ONNX_CLASSES = b"\x0a\x07classes\x12"  # what protobuf writes in front of the class names
# The largest difference allowed in an output: a share of it, or absolute if it is below 1, so scores agree.
TOLERANCE = 1e-4


def main() -> None:
    args = parse_args()
    predictor = load_model_for(args)
    size = predictor.options["img_size"]
    network: nn.Module = predictor.network
    output = "logits"
    if args.probabilities:
        network = nn.Sequential(network, nn.Sigmoid()).eval()
        output = "probabilities"
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        part = Path(folder, f"model{args.out.suffix}")
        # torch.export would fix a batch size of 1 as a constant, so a dynamic batch is traced with 2.
        images = torch.rand(2 if args.dynamic_batch else 1, 3, size, size)
        shapes = {0: torch.export.Dim("batch")} if args.dynamic_batch else {}
        export = EXPORTERS[args.out.suffix]
        exported = export(network, images, shapes, json.dumps(predictor.classes), part)
        if exported is None:
            print("not checked: pip install onnxruntime to compare the exported network with the checkpoint")
        else:
            compare_outputs(network, exported, size, [1, 3] if args.dynamic_batch else [1])
        with atomic_write(args.out, "wb") as file, open(part, "rb") as source:
            shutil.copyfileobj(source, file)
    batch = "any size" if args.dynamic_batch else "one"
    print(f"written to {args.out}: batches of {batch}, RGB of {size} x {size} in [0, 1] to {output}")


def compare_outputs(network: nn.Module, exported: Forward, size: int, batch_sizes: list[int]) -> None:
    """Print by how much the outputs for random images differ; UserError if it is too much."""
    differences = []
    shares = []  # of what is allowed
    for batch_size in batch_sizes:
        images = torch.rand(batch_size, 3, size, size)
        outputs = network(images)
        difference = (exported(images) - outputs).abs()
        differences.append(difference)
        shares.append(difference / (TOLERANCE * outputs.abs().clamp(min=1)))
    largest = torch.cat(differences).max()
    differ = f"the exported network's outputs on random images differ by up to {largest:.2g}"
    if not torch.cat(shares).max() < 1:  # also true for NaN
        raise UserError(f"{differ}, where {TOLERANCE} times an output is allowed: nothing is written")
    print(differ)


def export_onnx(
    network: nn.Module, images: Tensor, shapes: dict[int, Any], names: str, path: Path
) -> Forward | None:
    """Write an ONNX file with the class names in its metadata; return it as a function.

    Returns None if onnxruntime, which runs such a file, is not installed.
    """
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise UserError("export to ONNX needs two more packages: pip install onnx onnxscript")
    program = torch.onnx.export(
        network,
        (images,),
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=["probabilities" if isinstance(network, nn.Sequential) else "logits"],
        dynamic_shapes=(shapes,),
    )
    assert program is not None  # dynamo=True returns one
    program.model.metadata_props["classes"] = names
    program.save(path, external_data=False)
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def export_pt2(network: nn.Module, images: Tensor, shapes: dict[int, Any], names: str, path: Path) -> Forward:
    """Write torch.export's file, with the class names in its classes.json; return it as a function."""
    program = torch.export.export(network, (images,), dynamic_shapes=(shapes,))
    torch.export.save(program, path, extra_files={"classes.json": names})
    return torch.export.load(path).module()


def is_export(path: Path) -> bool:
    """Return whether export.py wrote a file: it then holds the class names."""
    if path.suffix == ".pt2":
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/classes.json") for name in archive.namelist())
    return ONNX_CLASSES in path.read_bytes()


EXPORTERS = {".onnx": export_onnx, ".pt2": export_pt2}


def parse_args() -> argparse.Namespace:
    parser = Parser(description="Export a checkpoint, and compare its outputs with those of the new file.")
    group = parser.add_argument_group("data")
    options.add_dataset_of_checkpoint(group)
    options.add_image_options(group, from_checkpoint=True)
    group = parser.add_argument_group("model")
    options.add_model_options(group, from_checkpoint=True)
    options.add_checkpoint(group)
    group = parser.add_argument_group("output")
    group.add_argument("--out", type=given_path, required=True, metavar="FILE", help="an .onnx or .pt2 file")
    group.add_argument("--dynamic_batch", action="store_true", help="accept batches of any size, not just 1")
    group.add_argument("--probabilities", action="store_true", help="output probabilities, not logits")
    args = complete_options(parser.parse_args())
    check_file(args.out, "--out", *EXPORTERS)
    check_replaceable(args.out, "--out", is_export, "export.py")
    return args


if __name__ == "__main__":
    run_script(main)
