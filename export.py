"""Export a checkpoint to ONNX or to torch.export's format, to run without this project.

python export.py --load_from MODEL.pth --out model.onnx
"""

import argparse
import importlib.util
import json
import shutil
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from utils import options
from utils.checkpoint import load_model
from utils.runtime.cli import Parser, UserError, given_path, number, run_script
from utils.runtime.files import atomic_write, check_file

TOLERANCE = 1e-4  # largest allowed difference between the outputs of the checkpoint and of the exported file


def main() -> None:
    args = parse_args()
    model = load_model(args.load_from, args.dataset, args.lam, args.img_size)
    network = nn.Sequential(model, nn.Sigmoid()).eval() if args.probabilities else model
    output = "probabilities" if args.probabilities else "logits"
    size = model.options["img_size"]
    # torch.export would fix a batch size of 1 as a constant, so a dynamic batch is traced with 2.
    images = torch.rand(2 if args.dynamic_batch else 1, 3, size, size)
    shapes = {0: torch.export.Dim("batch")} if args.dynamic_batch else None
    write, check = FORMATS[args.out.suffix]
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        part = Path(folder, f"model{args.out.suffix}")
        write(network, images, shapes, json.dumps(model.classes), part)
        batches = [torch.rand(n, 3, size, size) for n in ((1, 3) if args.dynamic_batch else (1,))]
        differences = [check(part, network, batch) for batch in batches]
        if None in differences:
            print("not checked: pip install onnxruntime to compare the exported network with the checkpoint")
        elif not max(differences) < TOLERANCE:  # also true for NaN
            differ = f"the exported network's outputs differ by up to {max(differences):.2g}"
            raise UserError(f"{differ}: nothing is written")
        else:
            print(f"the exported network's outputs on random images differ by up to {max(differences):.2g}")
        with atomic_write(args.out, "wb") as file, open(part, "rb") as source:
            shutil.copyfileobj(source, file)
    batch = "any size" if args.dynamic_batch else "one"
    print(f"written to {args.out}: batches of {batch}, RGB of {size} x {size} in [0, 1] to {output}")


def write_onnx(network: nn.Module, images: Tensor, shapes: dict | None, classes: str, path: Path) -> None:
    """Write a network as one ONNX file; its metadata holds the class names, as JSON, under `classes`."""
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise UserError("export to ONNX needs two more packages: pip install onnx onnxscript")
    program = torch.onnx.export(
        network,
        (images,),
        input_names=["images"],
        output_names=["probabilities" if isinstance(network, nn.Sequential) else "logits"],
        dynamic_shapes=shapes and (shapes,),
        dynamo=True,
        verbose=False,
    )
    program.model.metadata_props["classes"] = classes
    program.save(path, external_data=False)


def write_pt2(network: nn.Module, images: Tensor, shapes: dict | None, classes: str, path: Path) -> None:
    """Write a network as torch.export's file; the class names are in its extra file classes.json."""
    program = torch.export.export(network, (images,), dynamic_shapes=shapes and (shapes,))
    torch.export.save(program, path, extra_files={"classes.json": classes})


def check_onnx(path: Path, network: nn.Module, images: Tensor) -> float | None:
    """Return the largest difference of an ONNX file's outputs; None if onnxruntime is not installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    [outputs] = session.run(None, {"images": images.numpy()})
    return (torch.from_numpy(outputs) - network(images)).abs().max().item()


def check_pt2(path: Path, network: nn.Module, images: Tensor) -> float:
    """Return the largest difference of the outputs of torch.export's file."""
    return (torch.export.load(path).module()(images) - network(images)).abs().max().item()


FORMATS = {".onnx": (write_onnx, check_onnx), ".pt2": (write_pt2, check_pt2)}


def parse_args() -> argparse.Namespace:
    parser = Parser(description="Export a checkpoint, and compare the outputs of the two.")
    options.add_checkpoint_options(parser)
    out_help = "file to write, .onnx or .pt2"
    size_help = "side in pixels [default: as trained, else the data set's]"
    parser.add_argument("--out", type=given_path, required=True, metavar="FILE", help=out_help)
    parser.add_argument("--img_size", type=number(int, 33), help=size_help)
    parser.add_argument(
        "--dynamic_batch", action="store_true", help="accept batches of any size, not only one image"
    )
    parser.add_argument("--probabilities", action="store_true", help="output probabilities, not logits")
    dataset_help = "data set of a released checkpoint, for its class names [default: voc07]"
    parser.add_argument("--dataset", metavar="NAME", help=dataset_help)
    args = parser.parse_args()
    if args.out.suffix not in FORMATS:
        raise UserError(f"--out {args.out}: name a file that ends in {' or '.join(FORMATS)}")
    check_file(args.out, "--out")
    return args


if __name__ == "__main__":
    run_script(main)
