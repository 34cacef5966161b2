"""What test_distributed.py compares between one process and several.

torchrun … tests/distributed_step.py FILE VAL_OPTIONS, in a folder with the data set shapes, runs val.py and
trains. It writes the losses, gradients and weights to FILE.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import main
import val
from utils.data.datasets import DATASETS
from utils.data.labels import Labels, Paths
from utils.data.loaders import Loaders, TrainingLoader
from utils.data.samples import load_split
from utils.runtime import distributed
from utils.runtime.processes import RANK
from utils.runtime.progress import ProgressLines
from utils.runtime.script import run_script
from utils.training import saving
from utils.training.folder import RunFolder

CPU = torch.device("cpu")
OPTIONS = ["--dataset", "shapes", "--batch_size", "6", "--warmup_epoch", "0", "--lr", "1e-3"]


def train() -> dict:
    """Train for two epochs with batch-norm in eval mode; return the losses, gradients and weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["main.py", *OPTIONS])
        args = main.resolve(main.make_parser().parse_args())
        # Batches of 6, 6 and 1: only the first process has a share of the last one.
        dataset = load_split(DATASETS["shapes"], "train", 40, train=True)
        paths, targets = dataset.labels.paths, dataset.labels.targets
        dataset.labels = Labels(Paths.of(list(paths)[:13]), targets.select(np.arange(13)))
        loader = TrainingLoader(dataset, args.batch_size, 0, CPU)
        # float32 rounds some inputs of ReLU to the other side of 0, which would hide small mistakes.
        patch.setattr(main, "to_float", lambda images, device: images.double() / 255)
        model = main.build_model(args, CPU).double()
        model.train = lambda mode=True: nn.Module.train(model, False)
        ddp_model = distributed.wrap(model)
        run = main.build_run(args, RunFolder(), model, Loaders(loader, loader, loader, has_val=False))
        patch.setattr(saving, "gather_and_save", lambda run: None)
        losses = []
        for _ in range(2):
            main.train_one_epoch(run, ddp_model, loader, ProgressLines(100))
            losses.append(run.progress.train_loss)
            run.progress.next_epoch()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {"losses": losses, "gradients": gradients, "weights": model.state_dict()}


if __name__ == "__main__":
    _, file, *sys.argv[1:] = sys.argv
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "disconnect", lambda: None)  # the training needs the group, too
        run_script(val.main)
    results = train()
    if RANK == 0:
        torch.save(results, file)
    distributed.disconnect()
