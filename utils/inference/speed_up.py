"""The fastest safe way to run a network on many images: batch norm folded, and compiled if that repays."""

import argparse
import contextlib
import sys

import torch

from pipeline.compiling import CompiledNetwork, freezing
from pipeline.folding import folded
from pipeline.network import Network
from utils.data.samples import to_float
from utils.inference.predictor import Predictor
from utils.runtime import distributed
from utils.runtime.device import autocast, has_compiler
from utils.runtime.errors import one_line
from utils.runtime.limits import COMPILE_FROM
from utils.runtime.processes import RANK


def speed_up(predictor: Predictor, args: argparse.Namespace, num_images: int) -> Predictor:
    """Return a Predictor that labels faster, and print in a line how it does; all processes call this.

    Its scores are the same, up to rounding. It does not follow later changes of the network's weights.
    predictor: on its device. args: with compile (None: if it repays), amp and batch_size. num_images: of the
    whole job, whatever part of it is done or left to other processes: the last digits of a score depend on
    what is chosen here.
    """
    network = folded(predictor.network)
    compiles = args.compile
    if compiles is None:
        compiles = distributed.value_of_first(repays_compiling(predictor.device, num_images))
    print(choice(is_folded=network is not predictor.network, compiles=compiles))
    if compiles:
        network = compile_or_keep(network, predictor, args)
    return predictor.running(network)


def repays_compiling(device: torch.device, num_images: int) -> bool:
    """Return whether to compile a network for a job, if the user does not say; GPUs are not measured."""
    return device.type == "cpu" and num_images >= COMPILE_FROM and has_compiler()


def choice(is_folded: bool, compiles: bool) -> str:
    """Return the line that says how a network runs."""
    form = "batch norm folded" if is_folded else "as trained"
    if not compiles:
        return f"network: {form}, not compiled"
    return f"network: {form}, compiled, which takes up to a few minutes; --no-compile goes without"


def compile_or_keep(network: Network, predictor: Predictor, args: argparse.Namespace) -> Network:
    """Return a network compiled; if that fails in any process, say why on stderr and return it as it is."""
    compiled = CompiledNetwork(network, args.batch_size).eval()
    own_error = compile_now(compiled, predictor, args)
    errors = [error for error in distributed.gather(own_error) if error]
    if not errors:
        return compiled
    if RANK == 0:
        print(f"torch.compile failed, going on without it: {errors[0]}", file=sys.stderr)
    return network


@torch.inference_mode()
def compile_now(network: CompiledNetwork, predictor: Predictor, args: argparse.Namespace) -> str | None:
    """Compile a network, by running it on a batch of black images; return the error, or None."""
    device, side = predictor.device, predictor.options["img_size"]
    images = to_float(torch.zeros(args.batch_size, 3, side, side, dtype=torch.uint8), device)
    weights_as_constants = freezing() if device.type == "cpu" else contextlib.nullcontext()
    try:
        with weights_as_constants, autocast(device, args.amp):
            network.features(images)
    except Exception as error:  # noqa: BLE001  whatever is wrong, the network runs without the compiler
        return one_line(f"{type(error).__name__}: {error}").strip()
    return None
