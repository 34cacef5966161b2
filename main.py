"""Train a network with class-specific residual attention (CSRA) for multi-label recognition.

python main.py --num_heads 1 --lam 0.1 --dataset voc07 --num_cls 20
"""

import argparse
import math
import shlex
import sys
from typing import Any

import torch
from torch import nn
from torch.optim import SGD
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from pipeline.models import MODELS, build, check_img_size
from utils.commands import options
from utils.commands.summary import summary
from utils.data.classes import class_names
from utils.data.datasets import dataset_spec
from utils.data.loaders import make_loaders
from utils.data.samples import to_float
from utils.inference.outputs import evaluate_model
from utils.runtime import distributed, interrupt
from utils.runtime.cli import Parser, UserError, given_path, number, reporting_value_errors, run_script
from utils.runtime.device import autocast, choose_device
from utils.runtime.progress import progress
from utils.training.losses import LOSSES
from utils.training.run import Run, check_run_folder, check_same_start, find_saved, resumed_options
from utils.weights.fitting import load_backbone


def main() -> None:
    args, saved = parse_args()
    spec = dataset_spec(args.dataset)
    device = choose_device(args.device, args.amp, args.compile)
    if args.sync_bn and device.type != "cuda":
        raise UserError(f"--sync_bn needs CUDA GPUs, and this runs on {device}: leave it out")
    if distributed.RANK == 0 and not saved:
        check_run_folder(args.output_dir, args.overwrite)
    distributed.connect(device, args.batch_size)
    check_same_start(saved)
    train_loader, val_loader, test_loader, has_val = make_loaders(args, spec, device)
    model = build_model(args, device)
    ddp_model = distributed.wrap(model)
    optimizer = build_optimizer(model, args)
    scaler = torch.amp.GradScaler(device.type, enabled=args.amp == "fp16")
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(args.ema)) if args.ema else None
    run = Run(args, class_names(spec.folder), model, optimizer, scaler, ema)
    run.set_data(train_loader, val_loader, test_loader)
    print(summary(make_parser(), args))
    if saved:
        run.restore(saved)
        saved.clear()  # frees its memory
    split = "validation" if has_val else "test"
    print(f"{len(train_loader.dataset)} training and {len(val_loader.dataset)} {split} images, on {device}")
    run.open_folder()

    with run.stoppable():
        while run.epoch < args.total_epoch:
            train_one_epoch(run, ddp_model, train_loader, device)
            metrics = evaluate_model(run.eval_model, val_loader, device, args.amp)
            run.finish_epoch(metrics, len(train_loader.dataset))
        print(f"\n{run.report()}")
        if has_val:  # the test images have chosen nothing
            metrics = evaluate_model(run.load_best(), test_loader, device, args.amp)
            print(f"\n{run.finish(metrics)}")

    validate = ["python", "val.py", "--dataset", args.dataset, "--load_from", f"{run.folder}/best.pth"]
    print(f"\nvalidate it with: {shlex.join(validate)}")
    distributed.disconnect()


def train_one_epoch(run: Run, ddp_model: nn.Module, loader: DataLoader, device: torch.device) -> None:
    """Train the remaining steps of the current epoch, then save the run."""
    args, model, optimizer, scaler, ema = run.args, run.model, run.optimizer, run.scaler, run.ema
    ddp_model.train()
    torch.backends.cudnn.benchmark = True  # all batches but the last have the same shape
    loader.set_epoch(run.epoch, start=run.step)
    with progress(len(loader.dataset), f"epoch {run.epoch + 1}/{args.total_epoch}") as bar:
        bar.update(min(run.step * args.batch_size, bar.total))
        for images, targets, _ in loader:
            iteration, warmup = run.epoch * len(loader) + run.step, args.warmup_epoch * len(loader)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(group["base_lr"], iteration, run.epoch, warmup, args.decay_step)
            torch.manual_seed(hash((args.seed, iteration, distributed.RANK)))  # makes dropout resumable
            with autocast(device, args.amp):
                logits = ddp_model(to_float(images, device))
            loss_sum, num_labels = LOSSES[args.loss](logits, targets.to(device, non_blocking=True))
            # DDP averages gradients, so divide by the mean label count over the processes, which may be 0.
            loss = loss_sum / distributed.average(num_labels).clamp(min=1 / distributed.WORLD_SIZE)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            if ema:
                ema.update_parameters(model)

            run.totals += torch.stack([loss_sum.detach(), num_labels])  # does not wait for the GPU
            run.step += 1
            stop = interrupt.stop_requested()
            if stop or (args.save_every and run.step % args.save_every == 0):
                run.save()
            if stop:  # before anything is printed: the terminal may be closed
                interrupt.stop()
            bar.update(min(args.batch_size, bar.total - bar.n))
            if run.step % args.print_freq == 0:  # reading the loss waits for the GPU
                bar.write(run.progress_line(loader))
    distributed.average_buffers(model)
    if ema:
        distributed.average_buffers(ema)
    run.save()


def learning_rate(base: float, iteration: int, epoch: int, warmup_iterations: int, decay_step: int) -> float:
    """Return the rate at an iteration (from 0): linear warm-up, times 0.1 every `decay_step` epochs."""
    warmup = min(1.0, iteration / warmup_iterations) if warmup_iterations else 1.0
    return base * warmup * 0.1 ** (epoch // decay_step)


def build_model(args: argparse.Namespace, device: torch.device) -> nn.Module:
    """Return the network, initialised from --seed and the backbone weights that the options ask for."""
    torch.manual_seed(args.seed)
    with reporting_value_errors(f"--img_size {args.img_size}"):
        model = build(args.model, args.num_heads, args.lam, args.num_cls, args.img_size)
    model.normalization = args.normalize
    if not args.resume:  # a resumed run loads its own weights
        load_backbone(model, args)
    if args.sync_bn:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if args.compile:
        model.compile()
    return model.to(device, memory_format=torch.channels_last)


def build_optimizer(model: nn.Module, args: argparse.Namespace) -> SGD:
    """Return SGD; `base_lr` is --lr for the backbone, and --head_lr_factor times that for the classifier."""
    backbone = [p for name, p in model.named_parameters() if not name.startswith("classifier.")]
    head_lr = args.head_lr_factor * args.lr
    groups = [
        {"name": "backbone", "params": backbone, "base_lr": args.lr},
        {"name": "classifier", "params": list(model.classifier.parameters()), "base_lr": head_lr},
    ]
    optimizer = SGD(groups, lr=args.lr, momentum=args.momentum, weight_decay=args.w_d, fused=True)
    # If fp16 overflows in the first step and the scaler skips it, fused SGD leaves momentum uninitialised.
    for parameter in model.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def make_parser() -> Parser:
    own, positive = "[default: the data set's]", number(float, 0, low_allowed=False)
    parser = Parser(description="Train CSRA. The defaults are the paper's recipe, with one head and λ = 0.1.")
    group = parser.add_argument_group("data")
    options.add_dataset(group)
    options.add_image_options(group, from_checkpoint=False)
    options.add_loader_options(group, batch_help="images per step, of all processes together")

    group = parser.add_argument_group("model")
    options.add_model_options(group, from_checkpoint=False)
    group.add_argument("--list_models", action="store_true", help="print the names of the backbones and exit")
    file_help = "start from backbone weights in a checkpoint instead, such as CutMix's"
    weights = group.add_mutually_exclusive_group()
    weights.add_argument("--pretrained", choices=["imagenet", "none"], help=f"start weights {own}")
    weights.add_argument("--cutmix", "--backbone_weights", type=given_path, metavar="FILE", help=file_help)

    group = parser.add_argument_group("optimisation")
    group.add_argument("--total_epoch", type=number(int, 1), help=f"epochs to train {own}")
    group.add_argument("--warmup_epoch", type=number(int, 0), default=2, help="epochs of linear warm-up")
    group.add_argument("--decay_step", type=number(int, 1), help=f"epochs until --lr drops tenfold {own}")
    group.add_argument("--lr", type=positive, default=0.01, help="learning rate of the backbone")
    factor_help = "learning rate of the classifier, in multiples of --lr; 1 for the authors' baseline"
    group.add_argument("--head_lr_factor", type=positive, default=10.0, help=factor_help)
    group.add_argument("--momentum", type=number(float, 0), default=0.9, help="momentum of SGD")
    group.add_argument("--w_d", type=number(float, 0), default=1e-4, help="weight decay")
    group.add_argument("--loss", choices=LOSSES, default="bce", help="bce, or the asymmetric loss")
    ema_help = "evaluate and save a moving average of the weights, with a decay such as 0.9997"
    group.add_argument("--ema", type=number(float, 0, False, high=1), metavar="DECAY", help=ema_help)

    group = parser.add_argument_group("run")
    options.add_run_options(group)
    group.add_argument("--sync_bn", action="store_true", help="share batch-norm statistics between GPUs")
    group.add_argument("--seed", type=number(int, 0), default=0, help="seed of all random choices")
    options.add_folder_options(group)
    parser.set_defaults(num_heads=1)
    return parser


def parse_args() -> tuple[argparse.Namespace, dict[str, Any] | None]:
    """Return the options, and the checkpoint to resume or None."""
    parser = make_parser()
    args = parser.parse_args()
    if args.list_models:
        print("\n".join(MODELS))
        sys.exit(0)
    if (saved := find_saved(args)) is None:
        return resolve(args), None
    try:
        return resolve(resumed_options(parser, args, saved)), saved
    except UserError as error:
        raise UserError(f"{args.output_dir}/last.pth cannot be resumed: {error}") from None


def resolve(args: argparse.Namespace) -> argparse.Namespace:
    """Return the options with the data set's defaults for None; UserError for options that conflict."""
    spec = dataset_spec(args.dataset)
    num_classes = len(class_names(spec.folder))
    defaults = vars(spec) | {"num_cls": num_classes, "lam": 0.1 if args.num_heads else 0.0}
    defaults |= {"pretrained": None} if args.cutmix else {}
    resolved = {name: defaults.get(name) if value is None else value for name, value in vars(args).items()}
    del resolved["list_models"]  # not part of a run
    args = argparse.Namespace(**resolved)
    args.decay_step = args.decay_step or math.ceil(args.total_epoch * 2 / 3)
    if args.num_cls != num_classes:
        raise UserError(f"--num_cls {args.num_cls}: {args.dataset} has {num_classes} classes; leave it out")
    if args.lam and not args.num_heads:
        raise UserError("--num_heads 0 trains without attention: leave --lam out; val.py takes it afterwards")
    with reporting_value_errors(f"--img_size {args.img_size}"):
        check_img_size(args.model, args.img_size)
    if args.batch_size % (processes := distributed.WORLD_SIZE):
        share = f"--batch_size {args.batch_size} cannot be shared equally among {processes} processes"
        raise UserError(f"{share}: use a multiple of {processes}, or another --nproc_per_node")
    return args


if __name__ == "__main__":
    run_script(main)
