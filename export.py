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

from pipeline.models import restore
from utils.checkpoint import load_checkpoint, load_weights, names_of_classes
from utils.datasets import DATASETS, DatasetSpec
from utils.runtime.cli import Parser, UserError, blaming, given_path, number, run
from utils.runtime.files import check_file, whole_file

TOLERANCE = 1e-4  # largest difference between the checkpoint's outputs and the exported file's


def main() -> None:
    args = parse_args()
    checkpoint = load_checkpoint(args.load_from)
    config = checkpoint["config"]
    spec = DATASETS.get(args.dataset or config.get("dataset"), DatasetSpec(folder=""))
    with blaming(args.load_from):
        model, weights, settings = restore(
            checkpoint["model"], config, args.lam, args.img_size, spec.img_size
        )
    load_weights(model, weights, str(args.load_from))
    classes = names_of_classes(checkpoint, args.load_from, settings["num_cls"], args.dataset or "voc07")
    network = FromPixels(model, spec.mean, spec.std, args.probabilities).eval()
    # Two images to trace with: one alone would be taken for the only number there is.
    images = torch.rand(2 if args.dynamic_batch else 1, 3, settings["img_size"], settings["img_size"])
    write, check = FORMATS[args.out.suffix]
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        part = Path(folder, f"model{args.out.suffix}")
        write(network, images, classes, args.dynamic_batch, part)
        batches = (1, 3) if args.dynamic_batch else (1,)
        differences = [check(part, network, torch.rand(n, *images.shape[1:])) for n in batches]
        difference = None if None in differences else max(differences)
        if difference is not None and not difference < TOLERANCE:
            raise UserError(
                f"the exported network's outputs differ by up to {difference:.2g}: nothing is written"
            )
        with whole_file(args.out, "wb") as file, open(part, "rb") as source:
            shutil.copyfileobj(source, file)
    if difference is None:
        print("not checked: pip install onnxruntime to have the exported network compared")
    else:
        print(f"the exported network's outputs on random images differ by up to {difference:.2g}")
    batch, size = "any size" if args.dynamic_batch else "one", f"{images.shape[3]} x {images.shape[2]}"
    print(f"written to {args.out}: batches of {batch}, RGB of {size} in [0, 1] to {network.output}")


class FromPixels(nn.Module):
    """A network behind the pixel statistics of its data set: images (B, 3, S, S) in [0, 1] to (B, C)."""

    def __init__(self, model: nn.Module, mean: float, std: float, probabilities: bool):
        super().__init__()
        self.model, self.mean, self.std, self.probabilities = model, mean, std, probabilities
        self.output = "probabilities" if probabilities else "logits"

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model((images - self.mean) / self.std)
        return logits.sigmoid() if self.probabilities else logits


def write_onnx(network: FromPixels, images: Tensor, classes: list[str], dynamic: bool, path: Path) -> None:
    """Write a network as one ONNX file, with the class names as `classes` in its metadata, in JSON."""
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise UserError("export to ONNX needs two more packages: pip install onnx onnxscript")
    program = torch.onnx.export(
        network,
        (images,),
        input_names=["images"],
        output_names=[network.output],
        dynamic_shapes=batch_shapes(dynamic),
        dynamo=True,
        verbose=False,
    )
    program.model.metadata_props["classes"] = json.dumps(classes)
    program.save(path, external_data=False)


def write_pt2(network: FromPixels, images: Tensor, classes: list[str], dynamic: bool, path: Path) -> None:
    """Write a network as torch.export's file, with the class names in its extra file classes.json."""
    program = torch.export.export(network, (images,), dynamic_shapes=batch_shapes(dynamic))
    torch.export.save(program, path, extra_files={"classes.json": json.dumps(classes)})


def batch_shapes(dynamic: bool) -> dict | None:
    """Return which sides of the images may vary."""
    return {"images": {0: torch.export.Dim("batch")}} if dynamic else None


def check_onnx(path: Path, network: FromPixels, images: Tensor) -> float | None:
    """Return by how much an ONNX file's outputs differ at most; None where onnxruntime is not installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    [outputs] = session.run(None, {"images": images.numpy()})
    return (torch.from_numpy(outputs) - network(images)).abs().max().item()


def check_pt2(path: Path, network: FromPixels, images: Tensor) -> float:
    """Return by how much the outputs of torch.export's file differ at most."""
    return (torch.export.load(path).module()(images) - network(images)).abs().max().item()


FORMATS = {".onnx": (write_onnx, check_onnx), ".pt2": (write_pt2, check_pt2)}


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description="Export a checkpoint, and compare what it gives with what the checkpoint gives."
    )
    parser.add_argument("--load_from", type=given_path, required=True, metavar="FILE", help="the checkpoint")
    parser.add_argument(
        "--out", type=given_path, required=True, metavar="FILE", help="file to write, .onnx or .pt2"
    )
    parser.add_argument(
        "--img_size", type=number(int, 33), help="side of the images, pixels [default: as trained, else 448]"
    )
    parser.add_argument("--dynamic_batch", action="store_true", help="take any number of images, not one")
    parser.add_argument("--probabilities", action="store_true", help="give probabilities, not logits")
    parser.add_argument(
        "--lam", type=number(float, 0), help="weight lambda of the attention [default: as trained, else 0.1]"
    )
    parser.add_argument(
        "--dataset",
        help="whose class names a released checkpoint has [default: the checkpoint's own, or voc07]",
    )
    args = parser.parse_args()
    if args.out.suffix not in FORMATS:
        raise UserError(f"--out {args.out}: name a file that ends in {' or '.join(FORMATS)}")
    check_file(args.out, "--out")
    return args


if __name__ == "__main__":
    run(main)
