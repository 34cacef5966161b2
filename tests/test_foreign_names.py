"""Checkpoints of other trainers: where they store a network, and what they put in front of its names."""

from pathlib import Path

import pytest
import torch
import torchvision

import main
import val
from helpers import SHAPES, TINY
from pipeline.models import build, read_architecture
from pipeline.resnet_csra import ResNet_CSRA
from utils.runtime.errors import UserError
from utils.weights.contents import find_state_dict, load_checkpoint, unwrap

NAMES = ("conv1.weight", "layer1.0.bn1.weight", "classifier.multi_head.0.head.weight")
WEIGHTS = {name: torch.full((2,), float(i)) for i, name in enumerate(NAMES)}
AVERAGE = {name: tensor + 10 for name, tensor in WEIGHTS.items()}


def prefixed(prefix: str, weights: dict[str, torch.Tensor] = WEIGHTS) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


OPTIMIZER = {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}
BESIDE = {"n_averaged": torch.tensor(3), "criterion.pos_weight": torch.ones(3), "loss.weight": torch.ones(3)}


@pytest.mark.parametrize(
    "content",
    [
        WEIGHTS,
        *({key: WEIGHTS} for key in ("model", "state_dict", "model_state_dict", "net", "ema", "my_network")),
        {"ema": {"module": WEIGHTS, "decay": 0.99}},
        {"ema": {"shadow": WEIGHTS}},
        {"model": {"state_dict": WEIGHTS}},
        {"model": {"name": "resnet101"}, "state_dict": WEIGHTS},
        {"model": "resnet101", "model_state_dict": WEIGHTS, "optimizer_state_dict": OPTIMIZER},
        {"state_dict": WEIGHTS, "state_dict_ema": AVERAGE},
        {"optimizer": OPTIMIZER, "mean": {"mean": torch.zeros(3)}, "my_network": WEIGHTS},
        *(
            prefixed(prefix)
            for prefix in (
                "model.",
                "module.",
                "_orig_mod.",
                "backbone.",
                "net.",
                "module._orig_mod.",
                "_orig_mod.module.",
                "model.module.",
                "model.backbone.",
                "csra.",
                "model.csra.",
            )
        ),
        {"state_dict": prefixed("model._orig_mod."), "epoch": 3},
        {"model_state": {"net": prefixed("module.model.")}},
        {"state_dict": prefixed("model.") | BESIDE},
        {"state_dict": prefixed("model.") | prefixed("ema_model.module.", AVERAGE)},
        {"state_dict": prefixed("ema.module.", AVERAGE) | prefixed("model.")},
        {"ema": prefixed("module.") | {"n_averaged": torch.tensor(7)}},
        {
            "state_dict": {
                "backbone.conv1.weight": WEIGHTS[NAMES[0]],
                "backbone.layer1.0.bn1.weight": WEIGHTS[NAMES[1]],
                "head.csra_heads.0.head.weight": WEIGHTS[NAMES[2]],
            }
        },
    ],
)
def test_a_network_is_found_wherever_trainers_store_it(tmp_path, content):
    torch.save(content, tmp_path / "foreign.pth")
    found = load_checkpoint(tmp_path / "foreign.pth")["model"]
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        name: tensor.tolist() for name, tensor in WEIGHTS.items()
    }


def test_names_of_a_part_of_a_network_are_no_wrapper():
    for names in (
        {"features.0.weight", "features.0.bias"},
        {"trunk.conv1.weight"},
        {"weight"},
        {"fc.weight"},
    ):
        kept = {name.removeprefix("fc.") for name in names}
        assert unwrap(dict.fromkeys(names, torch.zeros(1))).keys() == kept


def test_a_dict_that_holds_itself_ends_the_search():
    content: dict = {"epoch": 3}
    content["model"] = content
    assert find_state_dict(content) is None


def test_names_may_have_any_number_of_parts():
    assert unwrap({"a." * 3000 + "b": torch.zeros(1)}).keys() == {"b"}


def test_a_wrapped_network_gives_the_metrics_of_the_plain_one(trained, shapes, command, tmp_path):
    weights = torch.load(trained / "best.pth", weights_only=True)["model"]
    torch.save(weights, tmp_path / "plain.pth")
    lightning = {
        "state_dict": prefixed("model._orig_mod.", weights) | BESIDE,
        "pytorch-lightning_version": "2",
    }
    torch.save(lightning, tmp_path / "wrapped.pth")
    results = []
    for name in ("plain", "wrapped"):
        result = command(val, *SHAPES, "--img_size", 40, "--load_from", tmp_path / f"{name}.pth")
        assert result.status == 0, result.err
        results.append(result.out.splitlines()[-1])
    assert results[0] == results[1]


def test_a_wrapped_file_starts_a_training(shapes, tmp_path):
    resnet = torchvision.models.resnet18(weights=None).state_dict()
    torch.save({"model_state_dict": prefixed("model.backbone.", resnet)}, tmp_path / "start.pth")
    words = ["--dataset", "shapes", *TINY, "--backbone_weights", str(tmp_path / "start.pth")]
    args = main.resolve(main.make_parser().parse_args(words))
    network = main.build_model(args, torch.device("cpu"))
    assert torch.equal(network.state_dict()["layer4.1.conv2.weight"], resnet["layer4.1.conv2.weight"])


def names_of(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return unwrap(network.state_dict())


def test_start_weights_are_suggested_only_where_they_fit():
    models = torchvision.models
    with torch.device("meta"):
        imagenet = [models.resnet50(), models.densenet121(), models.vit_b_16(), models.mobilenet_v2()]
        backbone = models.resnet50()
        backbone.fc = torch.nn.Identity()
        others = [models.resnet50(num_classes=20), models.vit_b_16(num_classes=20)]
        detection = models.detection
        for build_detector in (detection.fasterrcnn_resnet50_fpn, detection.retinanet_resnet50_fpn):
            others.append(build_detector(weights=None, weights_backbone=None))
    suggestion = "train from it with --backbone_weights"
    for network in (*imagenet, backbone):
        with pytest.raises(ValueError, match=suggestion):
            read_architecture(names_of(network))
    for network in others:
        with pytest.raises(ValueError, match="no CSRA head .* another kind of network") as error:
            read_architecture(names_of(network))
        assert suggestion not in str(error.value)
    mmdet = prefixed("backbone.", backbone.state_dict()) | {"neck.conv.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match="another kind of network"):
        read_architecture(unwrap(mmdet))


@pytest.mark.slow
def test_a_bare_file_of_another_backbone_needs_its_name(shapes, command, fails, tmp_path):
    path = tmp_path / "bare.pth"
    torch.save(build("shufflenet_v2_x0_5", 1, 0.1, 8, 40).state_dict(), path)
    options = [*SHAPES, "--img_size", 40, "--load_from", path]
    fails(val, *options, says=[path, "which backbone", "--model"])
    fails(val, *options, "--model", "resnet18", says=[path, "which backbone", "--model"])
    assert command(val, *options, "--model", "shufflenet_v2_x0_5").status == 0
    torch.save(ResNet_CSRA(1, 0.1, 8, 18).state_dict(), path)
    fails(val, *options, "--model", "shufflenet_v2_x0_5", says=["has model resnet18"])


def test_a_file_without_a_state_dict_is_refused(tmp_path):
    for content in ({}, {"epoch": 3}, {"model": [1]}, {"model": {}}, {"optimizer": OPTIMIZER}):
        torch.save(content, tmp_path / "none.pth")
        with pytest.raises(UserError, match="holds no state dict"):
            load_checkpoint(Path(tmp_path / "none.pth"))
