"""Train a network with class-specific residual attention (CSRA) for multi-label recognition.

python main.py --num_heads 1 --lam 0.1 --dataset voc07 --num_cls 20
"""

if __name__ == "__main__":
    import utils.runtime.quiet_interrupt  # first, see there

import argparse
import math
import shlex

import utils.runtime.passive_waiting  # before torch

import torch
from torch import Tensor, nn

import utils.runtime.torchvision_alone  # noqa: F401  before torchvision
from pipeline.models import build, check_img_size, default_lam, list_models
from pipeline.network import Network, has_map_of_one_place
from pipeline.timm_csra import is_timm, own_img_size, own_normalization
from utils.command_line import options
from utils.command_line.load_from import backbone_file
from utils.command_line.summary import summary
from utils.data.classes import class_names
from utils.data.datasets import dataset_spec
from utils.data.labels import fingerprint
from utils.data.loaders import Loaders, TrainingLoader, make_loaders
from utils.data.samples import to_float
from utils.inference.network_metrics import evaluate_model
from utils.metrics.report import format_report
from utils.runtime import distributed, interrupt
from utils.runtime.arguments import Parser, expand_home, number
from utils.runtime.device import autocast, choose_device, set_up_device
from utils.runtime.errors import UserError, reporting_value_errors
from utils.runtime.processes import RANK, WORLD_SIZE
from utils.runtime.progress import ProgressLines, progress_bar
from utils.runtime.script import run_script
from utils.training import messages, resume_options, saving
from utils.training.average import MovingAverage
from utils.training.folder import RunFolder, SavedRun, holds_run
from utils.training.losses import LOSSES
from utils.training.meter import EpochMeter
from utils.training.optimizers import OPTIMIZERS, build_optimizer
from utils.training.restoring import restore
from utils.training.resumable import check_same_start
from utils.training.run import Run
from utils.training.seeds import step_seed
from utils.training.state import Progress, TrainingState
from utils.weights.fitting import load_backbone


def main() -> None:
    given = make_parser().parse_args()
    if given.list_models is not None:
        with reporting_value_errors(f"--list_models {given.list_models}"):
            print("\n".join(list_models(given.list_models)))
        return
    with RunFolder() as folder:
        args, saved = open_run(given, folder)
        device = choose_device(args.device, args.amp, args.compile)
        set_up_device(device)
        if args.sync_bn and device.type != "cuda":
            raise UserError(f"--sync_bn needs CUDA GPUs, and this runs on {device}: leave it out")
        distributed.suggest_torchrun(device, args.batch_size)
        distributed.connect(device)
        position = None if saved is None else saved.content["position"]
        check_same_start(distributed.gather(position))
        if saved is None:  # only now: if another process lacks a GPU, torchrun kills this one
            folder.make(resume_options.named_folder(given), args)
        folder.broadcast_path()

        loaders = make_loaders(args, dataset_spec(args.dataset), device)
        network = build_model(args, device, start_weights=saved is None)
        check_batches(args, loaders.train, network)
        ddp_model = distributed.wrap(network)  # copies the first process's weights
        run = build_run(args, folder, network, loaders)
        print(summary(make_parser(), args))
        if saved is not None:
            restore(run, saved)
        print(messages.data_line(run, loaders))
        print(messages.start_line(run, is_resumed=saved is not None))
        if warning := messages.warmup_line(args):
            print(warning)
        del saved  # frees its memory
        folder.remove_leftovers()
        train(run, ddp_model, loaders)
        validate = ["python", "val.py", "--dataset", args.dataset, "--load_from", f"{folder.path}/best.pth"]
        print(f"\nvalidate it with: {shlex.join(validate)}")
    distributed.disconnect()


def open_run(given: argparse.Namespace, folder: RunFolder) -> tuple[argparse.Namespace, SavedRun | None]:
    """Return the options of a run, and its saved state if it is to be resumed; then its folder is open."""
    path = resume_options.named_folder(given)
    if path and given.resume and holds_run(path):
        folder.open(path)
        saved = folder.read_last()
        return resumed_args(saved), saved
    return resolve(given), None


def train(run: Run, ddp_model: nn.Module, loaders: Loaders) -> None:
    """Train the remaining epochs, evaluate and save each, and at the end test the best one."""
    device = run.state.device
    amp = run.args.amp
    lines = ProgressLines(run.args.print_freq)
    with saving.saying_how_to_resume(run):
        while run.progress.epoch < run.args.total_epoch:
            meter = train_one_epoch(run, ddp_model, loaders.train, lines)
            metrics = evaluate_model(run.state.evaluated, loaders.val, device, amp)
            saving.finish_epoch(run, metrics, meter.seconds())
            saving.gather_and_save(run)
        print(f"\n{messages.report(run)}")
        if loaders.has_val:  # so the test images did not choose the best epoch
            metrics = evaluate_model(saving.broadcast_best(run), loaders.test, device, amp)
            saving.write_test_results(run, metrics)
            print(f"\nbest.pth on the test images:\n{format_report(metrics, run.classes)}")


def train_one_epoch(
    run: Run, ddp_model: nn.Module, loader: TrainingLoader, lines: ProgressLines
) -> EpochMeter:
    """Train the remaining steps of the current epoch, and save the run; return the epoch's loss and time."""
    args = run.args
    progress = run.progress
    meter = EpochMeter(progress, run.state.device)
    ddp_model.train()
    torch.backends.cudnn.benchmark = True  # all batches but the last have the same shape
    loader.set_epoch(progress.epoch, start=progress.step)
    with progress_bar(run.num_images, f"epoch {progress.epoch + 1}/{args.total_epoch}") as bar:
        bar.update(min(progress.step * args.batch_size, run.num_images))
        for images, targets, _ in loader:
            loss_sum, num_labels = training_step(run, ddp_model, images, targets)
            meter.add(loss_sum, num_labels)
            progress.step += 1

            stop, show = distributed.any_process(bool(interrupt.received), lines.due(progress.step))
            is_last = progress.step == run.steps_per_epoch  # it is saved after the loop
            save = args.save_every and progress.step % args.save_every == 0 and not is_last
            if stop or save:
                meter.average_into(run)
                saving.gather_and_save(run)
            if stop:  # before anything is printed: the terminal may be closed
                interrupt.stop()
            bar.update(min(args.batch_size, run.num_images - bar.n))
            if show:
                meter.average_into(run)  # waits for the GPU
                bar.write(messages.progress_line(run))
                lines.printed()
    meter.average_into(run)
    run.state.average_buffers()
    saving.gather_and_save(run)
    return meter


def training_step(run: Run, ddp_model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Update the weights by a batch; return the sum of its loss and the number of its known labels.

    images: uint8 (B, 3, S, S). targets: (B, C) of 1, 0 or IGNORED. Both are this process's share.
    """
    args = run.args
    state = run.state
    epoch = run.progress.epoch
    iteration = epoch * run.steps_per_epoch + run.progress.step
    warmup = args.warmup_epoch * run.steps_per_epoch
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(group["base_lr"], iteration, epoch, warmup, args.decay_step)
    # A resumed run repeats the random numbers of dropout.
    torch.manual_seed(step_seed(args.seed, iteration, RANK))

    with autocast(state.device, args.amp):
        logits = ddp_model(to_float(images, state.device))
    loss_sum, num_labels = LOSSES[args.loss](logits, targets.to(state.device, non_blocking=True))
    # DDP averages gradients, so divide by the mean label count over the processes. The clamp only matters if
    # no process has a label: it prevents 0 / 0.
    loss = loss_sum / distributed.average(num_labels).clamp(min=1 / WORLD_SIZE)
    state.optimizer.zero_grad()
    state.scaler.scale(loss).backward()
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.moving_average:
        state.moving_average.update(state.network, iteration)
    return loss_sum, num_labels


def learning_rate(base: float, iteration: int, epoch: int, warmup_iterations: int, decay_step: int) -> float:
    """Return the rate at an iteration (from 0): linear warm-up, a tenfold drop every `decay_step` epochs."""
    rate = base
    if iteration < warmup_iterations:
        rate *= iteration / warmup_iterations
    num_drops = epoch // decay_step
    return rate * 0.1**num_drops


def build_run(args: argparse.Namespace, folder: RunFolder, network: Network, loaders: Loaders) -> Run:
    """Return a run that has done nothing yet."""
    datasets = loaders.train.dataset, loaders.val.dataset, loaders.test.dataset
    return Run(
        args=args,
        classes=class_names(dataset_spec(args.dataset).folder),
        labels=" ".join(fingerprint(dataset.labels) for dataset in datasets),
        num_images=len(loaders.train.dataset),
        steps_per_epoch=len(loaders.train),
        state=build_state(network, args),
        folder=folder,
    )


def build_state(network: Network, args: argparse.Namespace) -> TrainingState:
    """Return the state of a run that has done nothing yet."""
    moving_average = None
    if args.ema:
        moving_average = MovingAverage(network, args.ema)
        if args.compile:
            moving_average.network.compile()
    device = next(network.parameters()).device
    scaler = torch.amp.GradScaler(device.type, enabled=args.amp == "fp16")
    return TrainingState(network, build_optimizer(network, args), scaler, moving_average, Progress())


def build_model(args: argparse.Namespace, device: torch.device, start_weights: bool = True) -> Network:
    """Return the network, initialised from --seed, and with start_weights from --pretrained or --cutmix."""
    torch.manual_seed(args.seed)
    with reporting_value_errors(f"--img_size {args.img_size}"):
        model = build(args.model, args.num_heads, args.lam, args.num_cls, args.img_size)
    model.normalization = args.normalize
    if start_weights and (args.cutmix or args.pretrained == "imagenet"):
        load_backbone(model, args.model, backbone_file(args))
    if args.sync_bn:
        model.share_batch_statistics()
    if args.compile:
        model.compile()
    model.to(device)
    return model.to(memory_format=torch.channels_last)


def make_parser() -> Parser:
    default = "[default: the data set's]"
    positive = number(float, 0, low_allowed=False)
    parser = Parser(description="Train CSRA. The defaults are the paper's recipe, with one head and λ = 0.1.")
    group = parser.add_argument_group("data")
    options.add_dataset(group, from_checkpoint=False)
    options.add_image_options(group, from_checkpoint=False)
    options.add_loader_options(group, batch_help="images per step, of all processes together")

    group = parser.add_argument_group("model")
    options.add_model_options(group, from_checkpoint=False)
    list_help = "print the names of the backbones, or of those that fit a PATTERN such as 'timm:vit*'"
    group.add_argument("--list_models", nargs="?", const="*", metavar="PATTERN", help=list_help)
    file_help = "start from backbone weights in a checkpoint instead, such as CutMix's"
    weights = group.add_mutually_exclusive_group()
    weights.add_argument("--pretrained", choices=["imagenet", "none"], help=f"start weights {default}")
    weights.add_argument(
        "--cutmix", "--backbone_weights", type=expand_home, metavar="FILE|URL|NAME", help=file_help
    )

    group = parser.add_argument_group("optimisation")
    group.add_argument("--total_epoch", type=number(int, 1), help=f"epochs to train {default}")
    group.add_argument("--warmup_epoch", type=number(int, 0), default=2, help="epochs of linear warm-up")
    group.add_argument("--decay_step", type=number(int, 1), help=f"epochs until --lr drops tenfold {default}")
    optimizer_help = "sgd, as in the paper, or adamw"
    group.add_argument("--optimizer", choices=OPTIMIZERS, default="sgd", help=optimizer_help)
    lr_help = f"learning rate of the backbone [default: {default_of('lr')}]"
    group.add_argument("--lr", type=positive, help=lr_help)
    factor_help = "learning rate of the classifier, in multiples of --lr; 1 for the authors' baseline"
    group.add_argument("--head_lr_factor", type=positive, default=10.0, help=factor_help)
    momentum_help = f"momentum of sgd [default: {OPTIMIZERS['sgd'].momentum:g}]"
    group.add_argument("--momentum", type=number(float, 0), help=momentum_help)
    decay_help = f"weight decay; adamw leaves out norms and biases [default: {default_of('w_d')}]"
    group.add_argument("--w_d", type=number(float, 0), help=decay_help)
    group.add_argument("--loss", choices=LOSSES, default="bce", help="bce, or the asymmetric loss")
    decay = number(float, 0, low_allowed=False, high=1)
    ema_help = "evaluate and save a moving average of the weights, with a decay such as 0.9997"
    group.add_argument("--ema", type=decay, metavar="DECAY", help=ema_help)

    group = parser.add_argument_group("run")
    options.add_run_options(group, chooses_compile=False)
    group.add_argument("--sync_bn", action="store_true", help="share batch-norm statistics between GPUs")
    group.add_argument("--seed", type=number(int, 0), default=0, help="seed of all random choices")
    options.add_folder_options(group)
    parser.set_defaults(num_heads=1)  # the other commands take the checkpoint's
    return parser


def default_of(name: str) -> str:
    """Return the text on the default of an option that each optimizer has its own of."""
    return ", ".join(f"{getattr(values, name):g} for {key}" for key, values in OPTIMIZERS.items())


def resumed_args(saved: SavedRun) -> argparse.Namespace:
    """Return the options of a saved run, updated by the command line; UserError if that changes the run."""
    try:
        return resolve(resume_options.resumed_options(make_parser(), saved.content))
    except UserError as error:
        raise UserError(f"{saved.file} cannot be resumed: {error}") from error


def resolve(given: argparse.Namespace) -> argparse.Namespace:
    """Replace options that are None by the data set's and the optimizer's defaults.

    Raises UserError for options that conflict.
    """
    spec = dataset_spec(given.dataset)
    num_classes = len(class_names(spec.folder))
    defaults = {
        "model": spec.model,
        "pretrained": None if given.cutmix else spec.pretrained,
        "img_size": spec.img_size,
        "normalize": spec.normalize,
        "total_epoch": spec.total_epoch,
        "decay_step": spec.decay_step,
        "num_cls": num_classes,
        "lam": default_lam(given.num_heads),
        **OPTIMIZERS[given.optimizer]._asdict(),
    }
    if given.model and is_timm(given.model):
        defaults["img_size"] = own_img_size(given.model)
        if given.normalize is None:
            with reporting_value_errors("--model"):
                defaults["normalize"] = own_normalization(given.model)
    args = argparse.Namespace(**vars(given))
    del args.list_models  # not part of a run
    for name, default in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    if args.decay_step is None:
        args.decay_step = math.ceil(args.total_epoch * 2 / 3)
    check_options(args, num_classes)
    return args


def check_options(args: argparse.Namespace, num_classes: int) -> None:
    """Raise UserError for options that conflict."""
    if args.num_cls != num_classes:
        raise UserError(f"--num_cls {args.num_cls}: {args.dataset} has {num_classes} classes; leave it out")
    if args.lam and not args.num_heads:
        raise UserError("--num_heads 0 trains without attention: leave --lam out; val.py takes it afterwards")
    if args.optimizer == "adamw" and args.momentum is not None:
        raise UserError(f"--momentum {args.momentum:g} is for SGD: leave it out with --optimizer adamw")
    with reporting_value_errors(f"--img_size {args.img_size}"):
        check_img_size(args.model, args.img_size)
    if args.batch_size % WORLD_SIZE:
        share = f"--batch_size {args.batch_size} cannot be shared equally among {WORLD_SIZE} processes"
        raise UserError(f"{share}: use a multiple of {WORLD_SIZE}, or another --nproc_per_node")


def check_batches(args: argparse.Namespace, loader: TrainingLoader, network: Network) -> None:
    """Raise UserError if a process gets a batch of one image, and batch norm cannot train on one."""
    shares_statistics = args.sync_bn and WORLD_SIZE > 1
    if shares_statistics or loader.batch_sampler.smallest_share() > 1:
        return
    if has_map_of_one_place(network, args.img_size):
        owner = "a batch" if WORLD_SIZE == 1 else "a process"
        single = f"--batch_size {args.batch_size} leaves {owner} with a single image"
        reason = f"batch norm in {args.model} cannot train on one at --img_size {args.img_size}"
        raise UserError(f"{single}, and {reason}: use another --batch_size, or a larger --img_size")


if __name__ == "__main__":
    run_script(main)
