"""Compare Vision Transformers with their equations, and try the other networks."""

import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import nn
from torchvision.transforms import v2

import demo
import main
import val
from helpers import OWN, TINY, make_own
from pipeline import vit_csra
from pipeline.csra import MHA
from pipeline.models import MODELS, OTHERS, build, check_img_size, read_architecture
from pipeline.network import Network, has_map_of_one_place, rename
from pipeline.trunk_csra import Trunk_CSRA
from pipeline.vit_csra import TIMM, ViT_CSRA, read_vit
from small_networks import HEADS, INNER, LAYERS, WIDTH, timm_weights


@pytest.fixture
def tiny(monkeypatch):
    """Make vit_B16_224 a small network with two layers."""
    monkeypatch.setitem(vit_csra.VITS, "vit_B16_224", (LAYERS, HEADS, WIDTH, INNER))


def norm(x: torch.Tensor, state: dict, name: str) -> torch.Tensor:
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    return (x - mean) / (variance + 1e-6).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(x: torch.Tensor, state: dict, name: str) -> torch.Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def equations(image: torch.Tensor, state: dict) -> torch.Tensor:
    """Return the features (D, h, w) of an image (3, H, W) by the Vision Transformer's equations."""
    patches = [
        (state["patch_embed.proj.weight"] * image[:, y : y + 16, x : x + 16]).sum((1, 2, 3))
        for y in range(0, image.shape[1], 16)
        for x in range(0, image.shape[2], 16)
    ]
    patches = torch.stack(patches) + state["patch_embed.proj.bias"]
    z = torch.cat([state["cls_token"][0], patches]) + state["pos_embed"][0]
    for i in range(LAYERS):
        q, k, v = linear(norm(z, state, f"blocks.{i}.norm1"), state, f"blocks.{i}.attn.qkv").chunk(3, dim=1)
        size = WIDTH // HEADS
        heads = []
        for h in range(HEADS):
            part = slice(h * size, (h + 1) * size)
            weights = torch.softmax(q[:, part] @ k[:, part].T / math.sqrt(size), dim=1)
            heads.append(weights @ v[:, part])
        z = z + linear(torch.cat(heads, dim=1), state, f"blocks.{i}.attn.proj")
        inner = linear(norm(z, state, f"blocks.{i}.norm2"), state, f"blocks.{i}.mlp.fc1")
        gelu = 0.5 * inner * (1 + torch.erf(inner / math.sqrt(2)))
        z = z + linear(gelu, state, f"blocks.{i}.mlp.fc2")
    side = image.shape[1] // 16
    return norm(z, state, "norm")[1:].T.reshape(WIDTH, side, side)


def test_a_vision_transformer_follows_the_equations(tiny):
    state = timm_weights(grid=3)
    model = ViT_CSRA(1, 0.3, 3, "vit_B16_224", img_size=48).double().eval()
    model.load_state_dict(model.adapt(state))
    images = torch.rand(2, 3, 48, 48, dtype=torch.float64)
    features = torch.stack([equations(image, state) for image in images])
    torch.testing.assert_close(model.features(images), features)
    head = MHA(1, 0.3, WIDTH, 3).double()
    head.load_state_dict({"multi_head.0.head.weight": state["classifier.multi_head.0.head.weight"]})
    torch.testing.assert_close(model(images), head(features))


def test_timm_names_are_mapped_to_torchvisions():
    with torch.device("meta"):
        state = build("vit_B16_224", 1, 0.3, 14, 224).state_dict()
    names = {"conv_proj.weight", "class_token", "encoder.pos_embedding", "encoder.ln.bias"}
    for i in range(12):
        for name in ("ln_1.weight", "self_attention.in_proj_bias", "mlp.3.bias"):
            names.add(f"encoder.layers.encoder_layer_{i}.{name}")
    assert names <= state.keys()
    renamed = {
        "patch_embed.proj.weight": "conv_proj.weight",
        "blocks.23.attn.qkv.bias": "encoder.layers.encoder_layer_23.self_attention.in_proj_bias",
        "blocks.0.mlp.fc2.bias": "encoder.layers.encoder_layer_0.mlp.3.bias",
        "blocks.7.norm2.bias": "encoder.layers.encoder_layer_7.ln_2.bias",
        "norm.bias": "encoder.ln.bias",
        "classifier.multi_head.0.head.weight": "classifier.multi_head.0.head.weight",
    }
    assert rename({name: name for name in renamed}, TIMM) == {ours: name for name, ours in renamed.items()}


def test_position_embeddings_are_resized_to_the_images(tiny):
    state = timm_weights(grid=2)
    model = ViT_CSRA(1, 0.3, 3, "vit_B16_224", img_size=64)
    resized = model.adapt(state)["encoder.pos_embedding"]
    assert resized.shape == (1, 17, WIDTH)
    assert torch.equal(resized[:, 0], state["pos_embed"][:, 0])
    grid = state["pos_embed"][0, 1:].T.reshape(1, WIDTH, 2, 2)
    expected = F.interpolate(grid, (4, 4), mode="bicubic", align_corners=True)
    torch.testing.assert_close(resized[0, 1:], expected[0].flatten(1).T)
    assert read_vit(state) == ("vit_B16_224", 32)


@pytest.mark.slow
def test_training_starts_from_timms_weights_at_any_image_size(tiny, workdir, command):
    make_own(workdir)
    weights = timm_weights(grid=2)
    del weights["classifier.multi_head.0.head.weight"]
    head = {"head.weight": torch.zeros(1000, WIDTH), "head.bias": torch.zeros(1000)}
    torch.save(weights | head, "timm.pth")
    arguments = ["--dataset", "mine", *TINY, "--model", "vit_B16_224", "--img_size", 64, "--lr", 1e-9]
    result = command(main, *arguments, "--backbone_weights", "timm.pth", "--output_dir", "run")
    assert result.status == 0, result.err
    trained = torch.load("run/last.pth", weights_only=True)["model"]
    expected = weights["blocks.1.attn.qkv.weight"].float()
    name = "encoder.layers.encoder_layer_1.self_attention.in_proj_weight"
    torch.testing.assert_close(trained[name], expected, rtol=0, atol=1e-6)
    assert trained["encoder.pos_embedding"].shape == (1, 17, WIDTH)


def test_read_architecture_recognises_vision_transformers():
    head = {"classifier.multi_head.0.head.weight": torch.zeros(14, 768, 1, 1)}
    state = head | {"cls_token": torch.zeros(1, 1, 768)}
    expected = {"model": "vit_B16_224", "num_heads": 1, "num_cls": 14, "img_size": None}
    assert read_architecture(state) == expected
    assert read_architecture(state | {"cls_token": torch.zeros(1, 1, 1024)})["model"] == "vit_L16_224"
    state = {"head1.weight": torch.zeros(1), "head1.bias": torch.zeros(1), "conv1.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match="no CSRA head"):
        read_architecture(state)


def test_weights_and_image_sizes_that_do_not_fit_are_refused(tiny, workdir, fails):
    make_own(workdir)
    torch.save(timm_weights(grid=2) | {"pos_embed": torch.zeros(1, 7, WIDTH)}, "odd.pth")
    arguments = ["--dataset", "mine", *TINY, "--output_dir", "run"]
    vit = ["--model", "vit_B16_224", "--img_size", 64, "--cutmix", "odd.pth"]
    fails(main, *arguments, *vit, says=["odd.pth", "perfect square"])
    small = ["--model", "inception_v3", "--img_size", 64, "--pretrained", "none"]
    fails(main, *arguments, *small, says=["--img_size 64", "inception_v3 does not take images as small"])


def test_vision_transformers_take_multiples_of_16():
    check_img_size("resnet101", 450)
    check_img_size("vit_B16_224", 448)
    with pytest.raises(ValueError, match="multiple of 16, not 450"):
        check_img_size("vit_B16_224", 450)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    ["convnext_tiny", "swin_v2_t", "googlenet", "alexnet"],
)
def test_other_networks_take_torchvisions_weights_and_train(model):
    network = build(model, 2, 0.3, 5, 64).eval()
    plain = {"aux_logits": False, "init_weights": False} if model == "googlenet" else {}
    with torch.device("meta"):  # names and shapes are enough
        whole = torchvision.models.get_model(model, weights=None, **plain).state_dict()
    shapes = {key: tensor.shape for key, tensor in network.adapt(whole).items()}
    trunk = {key: t.shape for key, t in network.state_dict().items() if not key.startswith("classifier.")}
    assert trunk.items() <= shapes.items()
    images = torch.rand(2, 3, 96, 96)
    with torch.inference_mode():
        features = network.features(images)
        assert network(images).shape == (2, 5)
    assert features.ndim == 4
    assert features.shape[2:] == ((2, 2) if model == "alexnet" else (3, 3))
    network.train()(images).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_list_models_prints_every_name(command):
    assert {"resnet101", "vit_B16_224", "vit_L16_224", "convnext_base", "swin_v2_b"} <= set(MODELS)
    assert len(set(MODELS)) == len(MODELS) > 60
    result = command(main, "--list_models")
    assert (result.status, result.out.split()) == (0, list(MODELS))


@pytest.mark.parametrize("option", ["--model", "--list_models"])
def test_without_timm_one_line_says_what_to_install(workdir, fails, monkeypatch, option):
    monkeypatch.setitem(sys.modules, "timm", None)
    message = "timm:test_resnet needs one more package: pip install timm"
    fails(main, "--dataset", "shapes", option, "timm:test_resnet", says=[message])


# torchvision's presets have the mean and deviation of ImageNet in them.
IMAGENET = torchvision.models.ResNet101_Weights.IMAGENET1K_V1.transforms()
EXPECTED = {"0.5": ([0.5] * 3, [0.5] * 3), "imagenet": (IMAGENET.mean, IMAGENET.std)}


@pytest.mark.parametrize("normalization", EXPECTED)
@pytest.mark.parametrize("model", ["resnet18", "vit_B16_224", "alexnet"])
def test_networks_normalise_their_images(tiny, model, normalization):
    network, images = build(model, 1, 0.3, 5, 64).eval(), torch.rand(2, 3, 64, 64)
    names = list(network.state_dict())
    with torch.inference_mode():
        expected = network(v2.functional.normalize(images, *EXPECTED[normalization]))
        assert not torch.allclose(network(images), expected)
        network.normalization = normalization
        torch.testing.assert_close(network(images), expected)
        assert network.normalize(images).is_contiguous(memory_format=torch.channels_last)
    assert list(network.state_dict()) == names


@pytest.mark.slow
@pytest.mark.parametrize("model", ["vit_B16_224", "mobilenet_v3_small"])
def test_other_networks_train_validate_and_label(tiny, workdir, command, fails, model):
    make_own(workdir)
    arguments = [*OWN, *TINY, "--model", model]
    if model in OTHERS:
        size = 40
    else:
        size = 48
        fails(main, *arguments, says=["--img_size 40", "multiple of 16"])
    result = command(main, *arguments, "--img_size", size, "--output_dir", "run")
    assert result.status == 0, result.err
    options = ["--num_workers", 0, "--device", "cpu", "--load_from", "run/last.pth"]
    logged = json.loads((workdir / "run" / "log.jsonl").read_text().splitlines()[-1])["mAP"]
    result = command(val, "--dataset", "mine", *options, "--out", "r.json")
    assert result.status == 0, result.err
    assert json.loads((workdir / "r.json").read_text())["mAP"] == logged
    result = command(demo, *options, "--img_dir", "0.png", "--heatmap", "--top", 1)
    assert result.status == 0, result.err
    with Image.open("heatmaps/0.png/sheet.png") as image:
        assert np.asarray(image).std() > 0
    assert command(main, "--resume", "--output_dir", "run", "--total_epoch", 3).status == 0


@pytest.mark.slow
def test_torchvisions_densenet_files_have_older_names():
    network = Trunk_CSRA(1, 0.1, 2, "densenet121")
    names = [key.removeprefix("trunk.") for key in network.state_dict() if key.startswith("trunk.")]
    older = {re.sub(r"(denselayer\d+\.(?:norm|conv))", r"\1.", name): torch.zeros(1) for name in names}
    assert "features.denseblock1.denselayer1.norm.1.weight" in older
    assert list(network.adapt(older)) == [f"trunk.{name}" for name in names]


class Shrinking(Network):
    """A network with batch norm on maps of img_size / 8, rounded down."""

    def __init__(self):
        super().__init__()
        self.pool = nn.Sequential(nn.AvgPool2d(8), nn.BatchNorm2d(3))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return self.pool(images)


def test_networks_that_cannot_train_on_one_image_are_known():
    network = Shrinking()
    for side, single in ((8, True), (15, True), (16, False)):
        assert has_map_of_one_place(network, side) == single
    assert network.training
    assert network.pool[1].num_batches_tracked == 0
    assert not network.pool[1]._forward_pre_hooks


@pytest.mark.slow
@pytest.mark.parametrize(("model", "side"), [("densenet121", 33), ("googlenet", 33), ("inception_v3", 75)])
def test_a_batch_of_one_image_is_refused_before_training_where_it_cannot_be(workdir, command, model, side):
    make_own(workdir, count=5)
    options = [*OWN, *TINY, "--model", model, "--img_size", side, "--total_epoch", 1, "--lr", 1e-4]
    result = command(main, *options, "--batch_size", 4)
    assert result.status == 2
    assert result.err.count("\n") == 1
    for word in ("--batch_size 4", model, f"--img_size {side}", "single image"):
        assert word in result.err
    assert not Path("checkpoint").exists()
    if model == "googlenet":  # the smallest of the three
        assert command(main, *options, "--batch_size", 3).status == 0
