"""Two epochs of main.py's loop with batch-norm in eval mode, in one process or, by torchrun, in several.

python tests/distributed_step.py FILE, in a folder with the data set shapes; writes losses and tensors.
"""

import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import main
from utils.datasets import DATASETS, load_split, make_loader
from utils.label_files import Labels, class_names
from utils.run import Run
from utils.runtime import distributed

CPU = torch.device("cpu")


def train(path: str) -> None:
    torch.set_num_threads(1)
    sys.argv = ["main.py", "--dataset", "shapes", "--batch_size", "6", "--warmup_epoch", "0", "--lr", "1e-3"]
    args, _ = main.parse_args()
    distributed.connect(CPU)
    # Batches of 6, 6 and 1: of the last one only the first process has a share.
    dataset = load_split(DATASETS["shapes"], "train", 64, train=True)
    dataset.labels = Labels(dataset.labels.paths[:13], dataset.labels.targets[:13], None)
    loader = make_loader(dataset, args.batch_size, 0, CPU)
    # In float64: float32's rounding turns a ReLU here and there, which would hide a small mistake.
    main.to_float = lambda images, device: images.double() / 255
    model = main.build_model(args, CPU).double()
    model.train = lambda mode=True: nn.Module.train(model, False)
    ddp_model, optimizer = distributed.wrap(model), main.build_optimizer(model, args)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    losses = []
    for epoch in (0, 6):  # iteration 20, at which the loss is read, is one of the last small batch
        run = Run(args, class_names("shapes"), model, optimizer, scaler, epoch=epoch)
        run.save = lambda: None
        main.train_one_epoch(run, ddp_model, loader, CPU)
        losses.append(run.mean_loss())
    if distributed.RANK == 0:
        gradients = {name: p.grad for name, p in model.named_parameters()}
        torch.save({"losses": losses, "gradients": gradients, "weights": model.state_dict()}, path)
    distributed.disconnect()


if __name__ == "__main__":
    train(sys.argv[1])
