"""Compare the optimizers of main.py with plain ones, and stop and resume runs that use them."""

import sys
from argparse import Namespace

import pytest
import torch
import torchvision
from torch import Tensor, nn

import main
from helpers import RUN, assert_same, signal_at
from pipeline.models import build
from pipeline.network import Network, make_classifier
from utils.training.optimizers import build_optimizer, is_decayed


class OneOfEach(Network):
    """A small network with each kind of parameter: a convolution, a norm, a linear layer and embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, stride=4)
        self.norm = nn.BatchNorm2d(8)
        self.pos_embed = nn.Parameter(torch.randn(1, 8, 2, 2))
        self.linear = nn.Linear(2, 2)
        self.classifier = make_classifier(0, 0.1, 8, 5)

    def features(self, images: Tensor) -> Tensor:
        return self.linear(self.norm(self.conv(images)) + self.pos_embed)


def resolved(monkeypatch, *words: str) -> Namespace:
    monkeypatch.setattr(sys, "argv", ["main.py", "--dataset", "shapes", *words])
    return main.resolve(main.make_parser().parse_args())


def trained(network: Network, make) -> dict[str, Tensor]:
    """Make three steps with the optimizer of `make`; return the weights."""
    torch.manual_seed(0)
    optimizer = make(network)
    for _ in range(3):
        network(torch.rand(4, 3, 8, 8)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return network.state_dict()


def compare(monkeypatch, make_plain, *words: str) -> None:
    """Train the small network with main.py's optimizer and with a plain one; the weights must be equal."""
    args = resolved(monkeypatch, *words)
    torch.manual_seed(1)
    ours, theirs = OneOfEach(), OneOfEach()
    theirs.load_state_dict(ours.state_dict())
    before = {name: value.clone() for name, value in ours.state_dict().items()}

    def make_ours(network: Network) -> torch.optim.Optimizer:
        optimizer = build_optimizer(network, args)
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"]
        return optimizer

    after = trained(ours, make_ours)
    assert_same(after, trained(theirs, make_plain))
    assert not any(torch.equal(after[name], before[name]) for name, _ in ours.named_parameters())


def test_sgd_is_the_papers(monkeypatch):
    def plain_sgd(network: Network) -> torch.optim.SGD:
        *backbone, weight, bias = network.parameters()
        groups = [{"params": backbone, "lr": 0.01}, {"params": [weight, bias], "lr": 0.1}]
        return torch.optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=1e-4, fused=True)

    compare(monkeypatch, plain_sgd)


def test_adamw_decays_no_norms_biases_and_embeddings(monkeypatch):
    def plain_adamw(network: OneOfEach) -> torch.optim.AdamW:
        decayed = [network.conv.weight, network.linear.weight]
        others = [network.conv.bias, network.norm.weight, network.norm.bias, network.pos_embed]
        head = network.classifier.head
        groups = [
            {"params": decayed, "lr": 0.02, "weight_decay": 0.5},
            {"params": [*others, network.linear.bias], "lr": 0.02, "weight_decay": 0.0},
            {"params": [head.weight], "lr": 0.06, "weight_decay": 0.5},
            {"params": [head.bias], "lr": 0.06, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, fused=True)

    words = ["--optimizer", "adamw", "--lr", "0.02", "--w_d", "0.5", "--head_lr_factor", "3"]
    compare(monkeypatch, plain_adamw, *words)


@pytest.mark.parametrize(
    ("model", "kept"),
    [
        ("resnet18", set()),
        ("vit_B16_224", {"class_token", "pos_embedding"}),
        ("convnext_tiny", {"layer_scale"}),
        ("swin_v2_t", {"logit_scale"}),
        ("swin_t", {"relative_position_bias_table"}),
    ],
)
def test_adamw_decays_every_layer_and_nothing_else(model, kept):
    """Find the parameters of several dimensions that are not decayed, on the device without memory."""
    with torch.device("meta"):
        if model.startswith("vit"):
            network = build(model, 1, 0.1, 3, 64)
        else:
            network = torchvision.models.get_model(model)
    parameters = dict(network.named_parameters())
    left_out = {name for name, p in parameters.items() if p.ndim > 1 and not is_decayed(name, p)}
    assert {name.rpartition(".")[2] for name in left_out} == kept
    assert not any(is_decayed(name, p) for name, p in parameters.items() if p.ndim < 2)
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    decayed = {id(p) for name, p in parameters.items() if is_decayed(name, p)}
    assert layers
    assert all(id(layer.weight) in decayed for layer in layers)


def test_each_optimizer_has_defaults_of_its_own(monkeypatch):
    def values(*words: str) -> tuple:
        args = resolved(monkeypatch, *words)
        return args.optimizer, args.lr, args.momentum, args.w_d, args.head_lr_factor

    assert values() == ("sgd", 0.01, 0.9, 1e-4, 10)
    assert values("--optimizer", "adamw") == ("adamw", 1e-4, None, 0.01, 10)
    assert values("--optimizer", "adamw", "--lr", "1e-3", "--w_d", "0") == ("adamw", 1e-3, None, 0, 10)


def test_momentum_is_an_option_of_sgd_alone(workdir, fails):
    says = ["--momentum 0.8 is for SGD", "leave it out with --optimizer adamw"]
    fails(main, "--dataset", "shapes", "--optimizer", "adamw", "--momentum", 0.8, says=says)


def test_a_first_step_of_adamw_that_overflows_changes_nothing(monkeypatch):
    """The scaler of fp16 skips such a step; the next one must count as the first."""
    torch.manual_seed(1)
    network = OneOfEach()
    optimizer = build_optimizer(network, resolved(monkeypatch, "--optimizer", "adamw", "--w_d", "0"))
    scaler = torch.amp.GradScaler("cpu")
    before = network.conv.weight.detach().clone()
    for gradient in (torch.inf, 1.0):
        for parameter in network.parameters():
            parameter.grad = torch.full_like(parameter, gradient) * scaler.scale(torch.ones(()))
        scaler.step(optimizer)
        scaler.update()
    torch.testing.assert_close(network.conv.weight, before - 1e-4)  # the first step of Adam is lr · sign


@pytest.mark.slow
def test_a_run_with_adamw_resumes_to_the_last_bit(shapes, tmp_path, command, fails):
    options = [*RUN, "--optimizer", "adamw", "--output_dir"]
    whole = command(main, *options, tmp_path / "whole")
    assert whole.status == 0, whole.err
    assert "optimizer adamw, lr 0.0001 (head 0.001), w_d 0.01\n" in whole.out
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, "train", 5)
        assert command(main, *options, tmp_path / "run").status == 143
    changes = ["--optimizer", "sgd"]
    fails(main, "--resume", tmp_path / "run", *changes, says=["leave out --optimizer sgd (it has adamw)"])
    result = command(main, "--resume", tmp_path / "run")
    assert result.status == 0, result.err
    ours, theirs = (torch.load(tmp_path / name / "last.pth", weights_only=True) for name in ("run", "whole"))
    assert_same(ours["model"], theirs["model"])
    assert_same(ours["optimizer"], theirs["optimizer"])
    assert ours["record"]["lr"] == {"backbone": 1e-4, "classifier": 1e-3}
    assert ours["config"]["lr"] == 1e-4
