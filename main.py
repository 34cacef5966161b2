"""Train a network with class-specific residual attention (CSRA) for multi-label recognition.

python main.py --num_heads 1 --lam 0.1 --dataset voc07 --num_cls 20
"""

import argparse
import contextlib
import difflib
import math
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from pipeline.csra import TEMPERATURES
from pipeline.models import MODELS, build, check_img_size, torchvision_model
from utils import prepare_shapes
from utils.checkpoint import (
    first_not_finite,
    imagenet_weights,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from utils.datasets import DatasetSpec, dataset_spec, label_file, load_split, make_loader, to_float
from utils.evaluation import format_report
from utils.inference import evaluate_model
from utils.label_files import class_names
from utils.losses import LOSSES
from utils.resume import Position, arguments_of_run, restore_run, save_last
from utils.run_folder import (
    RUN_FILES,
    check_run,
    log_epoch,
    make_run,
    read_log,
    remove_if_empty,
    remove_parts,
)
from utils.runtime import distributed, interrupt
from utils.runtime.cli import (
    Interrupted,
    Parser,
    UserError,
    add_data_arguments,
    add_run_arguments,
    blaming,
    given_path,
    number,
    run,
)
from utils.runtime.device import autocast, check_compiler, choose_device
from utils.runtime.progress import progress
from utils.schedule import learning_rate


def main() -> None:
    args = parse_args()
    spec = dataset_spec(args.dataset)
    classes = class_names(spec.folder)
    device = choose_device(args.device, args.amp)
    check_options(args, device)
    if distributed.RANK == 0 and not args.resume:
        check_run(args.output_dir, args.overwrite)
    distributed.connect(device)
    train_loader, test_loader = make_loaders(args, spec, device)
    model = build_model(args, device)
    network = distributed.parallel(model)
    optimizer = build_optimizer(model, args)
    scaler = torch.amp.GradScaler(device.type, enabled=args.amp == "fp16")
    average = running_average(model, optimizer, args.ema)
    run, record, best = Position(), None, None
    if args.resume:
        run, record, best = restore_run(args.output_dir, classes, model, optimizer, scaler, average)
        if run.step > len(train_loader):
            raise UserError(
                f"{args.output_dir}/last.pth is of an epoch of other than {len(train_loader)} steps"
            )
    config = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    config["processes"] = distributed.WORLD_SIZE
    print("\n".join(f"{name:12} {value}" for name, value in config.items()))
    if distributed.RANK == 0:
        if args.resume:
            read_log(args.output_dir)  # a malformed one is told now, not after an epoch
            remove_parts(args.output_dir)
        else:
            args.output_dir = make_run(args.output_dir, run_name(args))
    folder = args.output_dir = distributed.gather(args.output_dir)[0]
    replaced = [folder / file for file in RUN_FILES] if args.overwrite else []
    print(f"{len(train_loader.dataset)} training and {len(test_loader.dataset)} test images, on {device}")
    print(f"writing to {folder}", flush=True)

    evaluated = average.module if average else model

    def describe() -> dict:
        weights = {"model": evaluated.state_dict()} | ({"raw": model.state_dict()} if average else {})
        return weights | {"config": config, "classes": classes, "record": record}

    def save() -> None:
        if broken := first_not_finite(model.state_dict()):
            raise diverged(f"the weights of {broken} became NaN or infinite", run, optimizer, args)
        buffers = distributed.gather([buffer.cpu() for buffer in model.buffers()])
        if distributed.RANK == 0:
            while replaced:  # an earlier run goes when this one has something to put in its place
                replaced.pop().unlink(missing_ok=True)
            state = {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(), "buffers": buffers}
            save_last(folder, describe() | state | {"position": vars(run), "best": best})
        distributed.any_process(False)  # nobody goes on, or leaves, before it is written

    if run.epoch >= args.total_epoch:
        print(f"this run is finished: its {run.epoch} epochs are done")
    try:
        with interrupt.listening("finishing the step, then saving"):
            while run.epoch < args.total_epoch:
                train_one_epoch(network, train_loader, optimizer, scaler, run, args, device, spec, save)
                distributed.average_buffers(model)
                if average:
                    distributed.average_buffers(average.module)
                save()
                start = time.perf_counter()
                metrics = evaluate_model(evaluated, test_loader, device, spec, args.amp)
                record = {
                    "epoch": run.epoch + 1,
                    "lr": {group["name"]: group["lr"] for group in optimizer.param_groups},
                    "train_loss": run.mean_loss(),
                    **metrics,
                    "seconds": run.seconds + time.perf_counter() - start,
                    "images_per_second": len(train_loader.dataset) / run.seconds,
                }
                if best is None or record["mAP"] > best["mAP"]:
                    best = record
                    if distributed.RANK == 0:
                        save_checkpoint(folder / "best.pth", describe())
                if distributed.RANK == 0:
                    log_epoch(folder, record)
                run = Position(epoch=run.epoch + 1)
                save()
    except Interrupted:
        launcher = "python" if distributed.WORLD_SIZE == 1 else "torchrun, as before, and"
        go_on = shlex.join(["main.py", "--resume", "--output_dir", str(folder)])
        with contextlib.suppress(OSError):  # whoever read this may have had the same signal
            print(
                f"stopped at step {run.step} of epoch {run.epoch + 1}; go on with: {launcher} {go_on}",
                flush=True,
            )
        raise
    finally:
        remove_if_empty(folder)

    print(f"\nbest epoch: {best['epoch']} of {run.epoch}")
    print(format_report(best, classes, test_loader.dataset.positives()))
    validate = ["python", "val.py", "--dataset", args.dataset, "--load_from", f"{folder}/best.pth"]
    print(f"\nvalidate it with: {shlex.join(validate)}")
    distributed.disconnect()


def train_one_epoch(
    model: nn.Module,
    loader: DataLoader,
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
    run: Position,
    args: argparse.Namespace,
    device: torch.device,
    spec: DatasetSpec,
    save: Callable[[], None],
) -> None:
    """Train over the loader from where `run` stands to the end of its epoch, and keep `run` up to date.

    save: called every --save_every steps, and before Interrupted is raised, as it is where a signal came.
    """
    model.train()
    torch.backends.cudnn.benchmark = True  # all batches but the last have one shape: the search pays
    loader.batch_sampler.epoch, loader.batch_sampler.start = run.epoch, run.step
    warmup_iterations = args.warmup_epoch * len(loader)
    totals = torch.tensor([run.loss_sum, run.labels], device=device)
    started = time.perf_counter() - run.seconds

    def note_progress() -> None:
        run.loss_sum, run.labels = distributed.average(totals).tolist()
        run.seconds = time.perf_counter() - started
        check_loss(run.mean_loss(), run, optimizer, args)

    with progress(len(loader.dataset), f"epoch {run.epoch + 1}/{args.total_epoch}") as bar:
        bar.update(min(run.step * args.batch_size, bar.total))
        for images, targets, _ in loader:
            iteration = run.epoch * len(loader) + run.step
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(
                    group["base_lr"], iteration, run.epoch, warmup_iterations, args.decay_step
                )
            with autocast(device, args.amp):
                logits = model(to_float(images, device, spec))
            loss_sum, labels = LOSSES[args.loss](logits, targets.to(device, non_blocking=True))
            # The processes' gradients are averaged: so the divisor is, though shares of a batch may differ.
            loss = loss_sum / distributed.average(labels).clamp(min=1 / distributed.WORLD_SIZE)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()

            totals += torch.stack([loss_sum.detach(), labels])
            run.step += 1
            bar.update(min(args.batch_size, bar.total - bar.n))
            if iteration % 20 == 0:  # reading the loss waits for the device
                shown = check_loss((loss_sum / labels.clamp(min=1)).item(), run, optimizer, args)
                bar.set_postfix(
                    loss=f"{shown:.4f}", lr=f"{optimizer.param_groups[0]['lr']:.2g}", refresh=False
                )
            stop = interrupt.asked_anywhere()
            if stop or (args.save_every and run.step % args.save_every == 0):
                note_progress()
                save()
            if stop:
                interrupt.stop()
    note_progress()


def check_loss(loss: float, run: Position, optimizer: Optimizer, args: argparse.Namespace) -> float:
    """Return the loss; UserError if it is not finite."""
    if not math.isfinite(loss):
        raise diverged(f"the loss became {loss}", run, optimizer, args)
    return loss


def diverged(what: str, run: Position, optimizer: Optimizer, args: argparse.Namespace) -> UserError:
    """Return the error that says what diverged where, what to try, and where the run before it is kept."""
    lr = optimizer.param_groups[0]["lr"]
    advice = f"start anew with a lower --lr than {args.lr:g}"
    if args.amp == "fp16":
        advice += ", or --amp bf16"
    elif run.epoch == 0 and args.warmup_epoch == 0:
        advice += ", or leave out --warmup_epoch 0"
    saved = [file for file in ("best.pth", "last.pth") if (args.output_dir / file).exists()]
    kept = (
        f"; {' and '.join(saved)} there {'is' if len(saved) == 1 else 'are'} from before it" if saved else ""
    )
    return UserError(f"{what} by step {run.step} of epoch {run.epoch + 1}, at lr {lr:.2g}: {advice}{kept}")


def check_options(args: argparse.Namespace, device: torch.device) -> None:
    """Raise UserError where the device cannot do what the arguments ask for."""
    if args.compile:
        check_compiler(device)
    if args.sync_bn and device.type != "cuda":
        raise UserError(f"--sync_bn needs CUDA GPUs, and this runs on {device}: leave it out")


def make_loaders(
    args: argparse.Namespace, spec: DatasetSpec, device: torch.device
) -> tuple[DataLoader, DataLoader]:
    """Return the loaders of the training and test images, making the built-in data set on its first use."""
    if args.dataset == "shapes":
        distributed.first_process_first(make_missing_shapes)
    train_set = load_split(spec, "train", args.img_size, args.seed, args.max_pixels)
    test_set = load_split(spec, "test", args.img_size, max_pixels=args.max_pixels)
    # Processes evaluate whole batches, not shares: small ones fit each GPU, however large the training batch.
    return (
        make_loader(train_set, args.batch_size, args.num_workers, device),
        make_loader(test_set, min(args.batch_size, 16), args.num_workers, device),
    )


def make_missing_shapes() -> None:
    """Make the data set shapes unless it is there."""
    if not label_file(dataset_spec("shapes"), "test").exists():
        print("The data set shapes is not there yet: making it with utils/prepare_shapes.py", flush=True)
        prepare_shapes.main([])


def build_model(args: argparse.Namespace, device: torch.device) -> nn.Module:
    """Return the network, random by --seed, its backbone from ImageNet or --cutmix weights if asked for.

    All processes hold the same weights.
    """
    torch.manual_seed(args.seed)
    with blaming(f"--img_size {args.img_size}"):
        model = build(args.model, args.num_heads, args.lam, args.num_cls, args.img_size)
    if not args.resume:  # whose own weights follow
        load_backbone(model, args)
    if args.sync_bn:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if args.compile:
        model.compile()
    return model.to(device, memory_format=torch.channels_last)


def load_backbone(model: nn.Module, args: argparse.Namespace) -> None:
    """Load the backbone's ImageNet weights, or those of --backbone_weights, if asked for."""
    if args.cutmix:
        weights, source = load_checkpoint(args.cutmix)["model"], f"--cutmix {args.cutmix} for {args.model}"
    elif args.pretrained == "imagenet":
        name = torchvision_model(args.model)
        weights, source = distributed.first_process_first(lambda: imagenet_weights(name)), "ImageNet weights"
    else:
        return
    with blaming(source):
        weights = model.adapt(weights)
    load_weights(model, weights, source, backbone_only=True)


def build_optimizer(model: nn.Module, args: argparse.Namespace) -> SGD:
    """Return SGD, the backbone at --lr and the classifier at ten times it (`base_lr` of each group)."""
    backbone = [p for name, p in model.named_parameters() if not name.startswith("classifier.")]
    groups = [
        {"name": "backbone", "params": backbone, "base_lr": args.lr},
        {"name": "classifier", "params": list(model.classifier.parameters()), "base_lr": 10 * args.lr},
    ]
    optimizer = SGD(groups, lr=args.lr, momentum=args.momentum, weight_decay=args.w_d, fused=True)
    # Zeros, since a first step that fp16 skips, having overflowed, would leave fused momentum uninitialised.
    for parameter in model.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def model_name(text: str) -> str:
    """Check the name of a model; an argparse type."""
    if text not in MODELS:
        near = ", ".join(difflib.get_close_matches(text, MODELS) or ["resnet101"])
        raise argparse.ArgumentTypeError(f"{text!r} is none of --list_models, as {near} are")
    return text


def running_average(model: nn.Module, optimizer: Optimizer, decay: float | None) -> AveragedModel | None:
    """Return the exponential moving average of the weights, updated after each step; None without a decay.

    Batch-norm statistics, averages themselves, are those of the last step.
    """
    if decay is None:
        return None
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    optimizer.register_step_post_hook(lambda *_: average.update_parameters(model))
    return average


def run_name(args: argparse.Namespace) -> str:
    """Return the name of a run's folder in checkpoint/, where --output_dir gives none."""
    return f"{args.dataset}_{args.model}_h{args.num_heads}_lam{args.lam:g}"


def parse_args() -> argparse.Namespace:
    """Parse and check the arguments, those of --resume being the run's."""
    parser = Parser(description="Train CSRA. The defaults are the recipe of the paper.")
    own = "[default: the data set's]"

    add_data_arguments(parser, "the data set's", "images of a step, all processes' together")
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", type=model_name, metavar="NAME", help=f"backbone; --list_models prints them all {own}"
    )
    group.add_argument("--list_models", action="store_true", help="print the names of the backbones and end")
    group.add_argument(
        "--num_heads",
        type=int,
        choices=[0, *TEMPERATURES],
        default=1,
        help="attention heads; 0: the plain baseline, average pooling [default: %(default)s]",
    )
    group.add_argument(
        "--lam", type=number(float, 0), help="weight lambda of the attention [default: 0.1, without heads 0]"
    )
    weights = group.add_mutually_exclusive_group()
    weights.add_argument(
        "--pretrained", choices=["imagenet", "none"], help=f"backbone weights to start from {own}"
    )
    weights.add_argument(
        "--cutmix",
        "--backbone_weights",
        type=given_path,
        metavar="FILE",
        help="backbone weights from a checkpoint instead, such as ResNet-101's trained with CutMix",
    )

    group = parser.add_argument_group("optimisation")
    group.add_argument("--total_epoch", type=number(int, 1), help=f"epochs to train {own}")
    group.add_argument(
        "--warmup_epoch", type=number(int, 0), default=2, help="epochs of linear warm-up [default: 2]"
    )
    group.add_argument(
        "--decay_step", type=number(int, 1), help=f"epochs between tenfold drops of the rate {own}"
    )
    group.add_argument(
        "--lr",
        type=number(float, 0, low_allowed=False),
        default=0.01,
        help="learning rate of the backbone; the classifier's is 10 times it [default: %(default)s]",
    )
    group.add_argument("--momentum", type=number(float, 0), default=0.9, help="of SGD [default: %(default)s]")
    group.add_argument(
        "--w_d", type=number(float, 0), default=1e-4, help="weight decay [default: %(default)s]"
    )

    group.add_argument(
        "--loss",
        choices=LOSSES,
        default="bce",
        help="bce: binary cross-entropy, the paper's; asl: asymmetric loss [default: %(default)s]",
    )
    group.add_argument(
        "--ema",
        type=number(float, 0, low_allowed=False, high=1),
        metavar="DECAY",
        help="evaluate and save a moving average of the weights, 0.9997 say, beside them [default: none]",
    )

    group = add_run_arguments(parser)
    group.add_argument(
        "--sync_bn", action="store_true", help="batch-norm statistics over all GPUs' images, not each one's"
    )
    group.add_argument(
        "--seed", type=number(int, 0), default=0, help="of weights and images [default: %(default)s]"
    )
    group.add_argument(
        "--output_dir",
        type=given_path,
        help="folder of the run [default: a new one in checkpoint/, named after the values]",
    )
    group.add_argument("--overwrite", action="store_true", help="replace the run that --output_dir holds")
    group.add_argument(
        "--resume", action="store_true", help="go on with the run that --output_dir holds, with its options"
    )
    group.add_argument(
        "--save_every",
        type=number(int, 1),
        metavar="STEPS",
        help="save after so many steps too [default: after each epoch, and when a signal asks to stop]",
    )
    args = parser.parse_args()
    if args.list_models:
        print("\n".join(MODELS))
        sys.exit(0)
    if not args.resume:
        return complete(args)
    args = arguments_of_run(parser, args)
    try:
        return complete(args)
    except UserError as error:
        raise UserError(f"the run of {args.output_dir}/last.pth cannot go on: {error}") from None


def complete(args: argparse.Namespace) -> argparse.Namespace:
    """Give the arguments left out the data set's own defaults; UserError where some do not go together."""
    del args.list_models  # it has been answered, and is no part of a run
    spec = dataset_spec(args.dataset)
    for name in ("model", "img_size", "total_epoch", "decay_step"):
        if getattr(args, name) is None:
            setattr(args, name, getattr(spec, name))
    if args.pretrained is None and args.cutmix is None:
        args.pretrained = spec.pretrained
    if args.lam is None:
        args.lam = 0.1 if args.num_heads else 0.0
    if args.lam and not args.num_heads:
        raise UserError("--num_heads 0 trains without attention: leave --lam out, and give it to val.py")
    with blaming(f"--img_size {args.img_size}"):
        check_img_size(args.model, args.img_size)
    if args.overwrite and args.output_dir is None:
        raise UserError("--overwrite replaces the run that --output_dir names: add --output_dir")
    num_cls = len(class_names(spec.folder))
    if args.num_cls not in (None, num_cls):
        raise UserError(
            f"--num_cls {args.num_cls}: {args.dataset} has {num_cls} classes; leave the option out"
        )
    args.num_cls = num_cls
    processes = distributed.WORLD_SIZE
    if args.batch_size % processes:
        raise UserError(
            f"--batch_size {args.batch_size} cannot be shared equally among {processes} processes: "
            f"use {math.ceil(args.batch_size / processes) * processes}"
        )
    return args


if __name__ == "__main__":
    run(main)
