"""timm's models as backbones, with random weights and without a network."""

import json
import math
import pickle
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import demo
import export
import main
import val
from helpers import RUN, TINY, assert_same, finish_ranks, make_own, signal_at, start_ranks
from pipeline import timm_csra
from pipeline.folding import folded
from pipeline.models import build, check_img_size
from pipeline.network import NORMALIZATION, has_map_of_one_place
from pipeline.timm_csra import Timm_CSRA, own_img_size, own_normalization, read_layout
from small_networks import with_statistics
from utils.checkpoint import load_model
from utils.command_line import load_from
from utils.weights import imagenet

timm = pytest.importorskip("timm")

# {model: what makes it small}; those with {} are small.
SMALL = {
    "test_resnet": {},
    "resnext50_32x4d": {"layers": (1, 1, 1, 1), "cardinality": 2, "channels": (16, 16, 32, 32)},
    "regnetx_002": {},
    "test_efficientnet": {},
    "mobilenetv4_conv_small_035": {},
    "convnextv2_atto": {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)},
    "swin_tiny_patch4_window7_224": {"depths": (1, 1, 2, 1), "embed_dim": 16, "num_heads": (1, 1, 2, 2)},
    "swinv2_tiny_window8_256": {"depths": (1, 1, 2, 1), "embed_dim": 16, "num_heads": (1, 1, 2, 2)},
    "test_vit": {},
    "test_vit2": {},
    "vit_small_patch14_reg4_dinov2": {"depth": 2, "embed_dim": 48, "num_heads": 3},
    "eva02_tiny_patch14_224": {"depth": 2, "embed_dim": 48, "num_heads": 3},
    "deit_tiny_distilled_patch16_224": {"depth": 2, "embed_dim": 48, "num_heads": 3},
    "vit_tiny_r_s16_p8_224": {"depth": 2, "embed_dim": 48, "num_heads": 3},
    "test_maxvit": {},
    "test_coatnet": {},
    "levit_128s": {"embed_dim": (32, 48, 64), "depth": (1, 1, 1)},
    "test_mambaout": {},
}
# How timm pools each: its part that takes the mean over places, or "forward_head" where nothing follows it.
POOLING = {
    "test_resnet": "forward_head",
    "resnext50_32x4d": "forward_head",
    "regnetx_002": "forward_head",
    "test_efficientnet": "forward_head",
    "mobilenetv4_conv_small_035": "global_pool",
    "convnextv2_atto": "head.global_pool",
    "swinv2_tiny_window8_256": "forward_head",
    "test_vit2": "pool",
    "eva02_tiny_patch14_224": "pool",
    "test_maxvit": "forward_head",
    "test_coatnet": "forward_head",
    "levit_128s": "forward_head",
}
WITH_TOKENS = ("test_vit", "test_vit2", "vit_small_patch14_reg4_dinov2", "eva02_tiny_patch14_224")
DROPPING = "swin_tiny_patch4_window7_224"  # it drops up to a tenth of its paths in training
VIT = ["--model", "timm:test_vit", "--img_size", "48"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Make the models in SMALL small."""
    create = timm.create_model

    def create_small(name, **options):
        return create(name, **SMALL.get(name, {}), **options)

    monkeypatch.setattr(timm, "create_model", create_small)
    read_layout.cache_clear()
    yield
    read_layout.cache_clear()


def size_for(name: str) -> int:
    """Return a small side that a model takes."""
    if name == "levit_128s":
        return 128  # 64 leave it one place
    return 56 if "patch14" in name else 64


def make_pair(name: str) -> tuple[Timm_CSRA, nn.Module]:
    """Return a network with random weights and statistics, and timm's own with the same weights."""
    torch.manual_seed(0)
    size = size_for(name)
    network = build(f"timm:{name}", 1, 0.3, 5, size).eval()
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.1 * torch.rand_like(tensor))  # LeViT's last norms start at 0
    is_fixed = timm.get_pretrained_cfg(name).fixed_input_size
    theirs = timm.create_model(name, num_classes=0, **({"img_size": size} if is_fixed else {})).eval()
    unknown = theirs.load_state_dict(network.trunk.state_dict(), strict=False).unexpected_keys
    assert not unknown
    return network, theirs


@torch.inference_mode()
@pytest.mark.parametrize("name", POOLING)
def test_the_mean_of_the_map_is_what_timm_pools(name):
    network, theirs = make_pair(name)
    images = torch.rand(2, 3, size_for(name), size_for(name))
    part = POOLING[name]
    features = theirs.forward_features(images)
    if part == "forward_head":
        expected = theirs.forward_head(features, pre_logits=True)
    elif part == "pool":
        expected = theirs.pool(features)
    else:
        expected = theirs.get_submodule(part)(features)
    mean = network.features(images).mean((2, 3))
    torch.testing.assert_close(mean, expected.reshape(mean.shape), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("name", [*WITH_TOKENS, "test_mambaout", "swinv2_tiny_window8_256"])
def test_the_places_of_the_map_are_those_of_timm(name):
    network, theirs = make_pair(name)
    images = torch.rand(2, 3, size_for(name), size_for(name))
    options = {"indices": 1, "norm": True, "output_fmt": "NCHW", "intermediates_only": True}
    (expected,) = theirs.forward_intermediates(images, **options)
    torch.testing.assert_close(network.features(images), expected)


@pytest.mark.parametrize("name", SMALL)
def test_the_map_has_the_size_of_the_stride_and_every_parameter_a_gradient(name):
    network, theirs = make_pair(name)
    size = size_for(name)
    stride = 32 if name == "levit_128s" else theirs.feature_info[-1]["reduction"]
    side = math.ceil(size / stride) if name != "levit_128s" else 2  # 128, 64, … 8, then 4 and 2
    images = torch.rand(2, 3, size, size)
    assert network.features(images).shape == (2, theirs.num_features, side, side)
    network.train()(images).sum().backward()
    assert [key for key, parameter in network.named_parameters() if parameter.grad is None] == []


def test_weights_do_not_depend_on_whether_the_layout_is_known():
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(build("timm:test_vit2", 2, 0.1, 3, 64).state_dict())
    assert_same(*states)


def test_a_network_built_without_numbers_takes_them_from_a_state_dict():
    network = build("timm:swinv2_tiny_window8_256", 1, 0.1, 3, 64).eval()
    with torch.device("meta"):
        empty = build("timm:swinv2_tiny_window8_256", 1, 0.1, 3, 64).eval()
    empty.load_state_dict(network.state_dict(), assign=True)
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(empty(images), network(images))


@pytest.mark.parametrize(
    ("model", "side", "says"),
    [
        ("timm:test_vit", 100, "does not take images of 100 x 100"),
        ("timm:swinv2_tiny_window8_256", 66, "multiple of 4, not 66"),
        ("timm:test_maxvit", 80, "does not take images of 80 x 80"),
        ("timm:vit_small_patch14_reg4_dinov2", 64, "multiple of 14, not 64"),
        ("timm:crossvit_tiny_240", 240, "no feature map: it returns a list"),
        ("timm:pit_ti_224", 224, "no feature map: it makes features of shape (1, 256)"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(workdir, fails, model, side, says):
    make_own(workdir)
    options = ["--dataset", "mine", *TINY, "--model", model, "--img_size", side, "--pretrained", "none"]
    fails(main, *options, says=[f"--img_size {side}", model, says])
    with pytest.raises(ValueError, match=f"{model} "):
        check_img_size(model, side)


def test_unknown_names_are_refused_with_similar_ones(workdir, fails):
    fails(main, "--model", "timm:test_resnett", says=["timm:test_resnett", "did you mean timm:test_resnet"])
    fails(main, "--model", "timm:test_vit.best", says=["timm:test_vit.best", "timm:test_vit.r160_in1k"])
    fails(main, "--model", "timm:test_vit.", says=["timm:test_vit.", "timm:test_vit.r160_in1k"])
    fails(main, "--model", "timm:tf_efficientnet_b0_ns", says=["did you mean timm:tf_efficientnet_b0"])
    fails(main, "--list_models", "timm:restnet*", says=["--list_models timm:restnet*", "no model"])
    fails(main, "--list_models", "", says=["--list_models", "no model"])


def test_a_checkpoint_of_an_unknown_model_is_refused(workdir, fails):
    make_own(workdir)
    state = build("timm:test_resnet", 1, 0.1, 2, 64).state_dict()
    config = {"model": "timm:gone", "lam": 0.1, "img_size": 64, "normalize": "none"}
    torch.save({"model": state, "config": config, "classes": ["a", "b"], "record": {}}, "m.pth")
    fails(val, "--dataset", "mine", "--load_from", "m.pth", says=["m.pth", "timm:gone", "did you mean"])


def test_list_models_filters(command):
    assert command(main, "--list_models", "timm:test_vit?").out.split() == [
        f"timm:test_vit{number}" for number in (2, 3, 4)
    ]
    assert command(main, "--list_models", "timm:test_vit.*").out == "timm:test_vit.r160_in1k\n"
    assert command(main, "--list_models", "resnet?01").out == "resnet101\n"


def test_images_are_by_default_those_of_the_model(shapes, monkeypatch):
    def resolved(*options: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["main.py", "--dataset", "shapes", *options])
        args = main.resolve(main.make_parser().parse_args())
        return args.img_size, args.normalize

    assert resolved("--model", "resnet18") == (64, "none")
    assert resolved("--model", "timm:test_vit") == (160, "0.5")
    assert resolved("--model", "timm:test_vit", "--img_size", "48", "--normalize", "clip") == (48, "clip")


def test_every_model_of_timm_has_a_known_normalisation():
    models = timm.list_models(pretrained=True)
    assert {own_normalization(f"timm:{name}") for name in models} == set(NORMALIZATION)
    means, stds = NORMALIZATION["clip"]
    assert means == timm.data.OPENAI_CLIP_MEAN
    assert stds == timm.data.OPENAI_CLIP_STD
    assert own_img_size("timm:vit_base_patch16_siglip_384") == 384


@pytest.fixture
def trained_vit(shapes, command, tmp_path) -> Path:
    """Train a Vision Transformer of timm on the tiny data set; return the folder of the run."""
    result = command(main, *RUN, *VIT, "--num_heads", 2, "--output_dir", tmp_path / "run")
    assert result.status == 0, result.err
    return tmp_path / "run"


def test_a_trained_model_is_validated_swept_and_drawn(trained_vit, command, tmp_path, monkeypatch):
    def unexpected(model):
        raise AssertionError(f"the checkpoint has these values, timm is asked for those of {model}")

    monkeypatch.setattr(timm_csra, "own_img_size", unexpected)
    monkeypatch.setattr(timm_csra, "own_normalization", unexpected)
    best = trained_vit / "best.pth"
    options = ["--num_workers", 0, "--device", "cpu", "--load_from", best]
    out = tmp_path / "r.json"
    result = command(val, "--dataset", "shapes", *options, "--out", out, "--sweep", "lam=0:1:0.5", "T=1")
    assert result.status == 0, result.err
    logged = [json.loads(line)["mAP"] for line in (trained_vit / "log.jsonl").read_text().splitlines()]
    assert json.loads(out.read_text())["mAP"] == max(logged)
    result = command(val, "--dataset", "shapes", *options, "--img_size", 64)  # resizes the embeddings
    assert result.status == 0, result.err
    photo = "data/shapes/images/test/00000.jpg"
    heatmaps = ["--heatmap", "--top", 1, "--out_dir", tmp_path / "maps"]
    result = command(demo, *options, "--img_dir", photo, *heatmaps)
    assert result.status == 0, result.err

    predictor = load_model(best, device="cpu")
    assert predictor.network.normalization == "0.5"
    assert predictor.options["img_size"] == 48
    where = predictor.attention(photo)["ring"]
    assert where.shape == (3, 3)
    np.testing.assert_allclose(where.sum(), 1, rtol=1e-5)
    images = torch.rand(2, 3, 48, 48)
    assert torch.equal(pickle.loads(pickle.dumps(predictor))(images), predictor(images))


@pytest.mark.parametrize("num_heads", [0, 8])
def test_stochastic_depth_resumes_to_the_last_bit(shapes, command, tmp_path, monkeypatch, num_heads):
    options = [*RUN, "--model", f"timm:{DROPPING}", "--img_size", 64, "--num_heads", num_heads, "--ema", 0.9]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert command(main, *options, "--output_dir", whole).status == 0
    with monkeypatch.context() as patch:
        signal_at(patch, "train", 5)
        assert command(main, *options, "--output_dir", stopped).status == 143
    assert command(main, "--resume", stopped).status == 0
    ends = [torch.load(run / "last.pth", weights_only=True) for run in (whole, stopped)]
    for part in ("model", "raw", "optimizer"):
        assert_same(ends[0][part], ends[1][part])


def test_paths_are_dropped_in_training():
    network = build(f"timm:{DROPPING}", 1, 0.1, 3, 64)
    images = torch.rand(8, 3, 64, 64)
    assert not torch.equal(network(images), network(images))
    assert torch.equal(network.eval()(images), network(images))


def test_weights_of_timm_start_training(shapes, monkeypatch, tmp_path):
    """They come with a classifier and for images of another size, from torch.save or as safetensors."""
    import safetensors.torch

    theirs = timm.create_model("test_vit2", pretrained=False, img_size=160)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    options = ["--dataset", "shapes", *TINY, "--model", "timm:test_vit2"]
    states = []
    for ending in ("pth", "safetensors"):
        file = ["--backbone_weights", str(tmp_path / f"weights.{ending}")]
        monkeypatch.setattr(sys, "argv", ["main.py", *options, "--img_size", "64", *file])
        args = main.resolve(main.make_parser().parse_args())
        states.append(main.build_model(args, torch.device("cpu")).state_dict())
    assert_same(*states)
    weight = "blocks.1.attn.qkv.weight"
    assert torch.equal(states[0][f"trunk.{weight}"], theirs.state_dict()[weight])
    assert states[0]["trunk.pos_embed"].shape[1] == 1 + 16
    assert "trunk.fc_norm.weight" not in states[0]  # timm norms what it has pooled


def test_tables_of_relative_positions_are_resized():
    name = "timm:swin_tiny_patch4_window7_224"
    small, large = (build(name, 1, 0.1, 3, side) for side in (56, 112))
    table = "trunk.layers.3.blocks.0.attn.relative_position_bias_table"
    assert small.state_dict()[table].shape == (3**2, 2)
    with warnings.catch_warnings(action="error"):
        adapted = large.adapt(small.state_dict())
    assert adapted[table].shape == (7**2, 2)
    large.load_state_dict(adapted)


def test_files_that_do_not_fit_or_are_damaged_are_refused(shapes, fails, workdir, monkeypatch):
    import safetensors.torch

    make_own(workdir)
    other = timm.create_model("test_vit", pretrained=False)
    safetensors.torch.save_file(other.state_dict(), "other.safetensors")
    content = Path("other.safetensors").read_bytes()
    Path("cut.safetensors").write_bytes(content[:-100])
    options = ["--dataset", "mine", *TINY, "--model", "timm:test_resnet", "--backbone_weights"]
    fails(
        main, *options, "other.safetensors", says=["other.safetensors for timm:test_resnet", "lacks trunk."]
    )
    fails(main, *options, "cut.safetensors", says=["cut.safetensors is damaged"])
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    fails(main, *options, "other.safetensors", says=["other.safetensors", "pip install safetensors"])


HUB = ["--dataset", "shapes", *TINY, "--model", "timm:test_resnet", "--pretrained", "imagenet"]


def test_weights_from_the_hub_are_downloaded_once(shapes, hub, server, monkeypatch):
    import huggingface_hub
    import safetensors.torch

    theirs = timm.create_model("test_resnet", pretrained=False)
    content = safetensors.torch.save(theirs.state_dict())
    url = server.add("/timm/test_resnet.r160_in1k/model.safetensors", content)
    monkeypatch.setattr(huggingface_hub, "hf_hub_url", lambda repo, file: server.url(f"/{repo}/{file}"))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, file: None)
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["main.py", *HUB])
        args = main.resolve(main.make_parser().parse_args())
        state = main.build_model(args, torch.device("cpu")).state_dict()
        assert torch.equal(state["trunk.conv1.0.weight"], theirs.state_dict()["conv1.0.weight"])
    assert len(server.asked) == 1
    assert url.endswith(server.asked[0])
    assert (hub / "test_resnet.r160_in1k.safetensors").read_bytes() == content


def test_weights_in_the_cache_of_the_hub_are_not_downloaded(hub, monkeypatch, tmp_path):
    import huggingface_hub

    cached = tmp_path / "model.safetensors"
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, file: str(cached))
    assert load_from.pretrained_file("timm:test_resnet") == cached


def test_without_a_network_one_line_names_the_file(shapes, fails, workdir, hub, server, monkeypatch):
    import huggingface_hub

    make_own(workdir)
    monkeypatch.setattr(huggingface_hub, "hf_hub_url", lambda repo, file: server.url("/gone.safetensors"))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, file: None)
    options = ["--dataset", "mine", *HUB[2:]]
    place = hub / "test_resnet.r160_in1k.safetensors"
    fails(main, *options, says=["gone.safetensors", f"put the file at {place}", "--pretrained none"])
    monkeypatch.undo()
    monkeypatch.chdir(workdir)
    without = [*options, "--model", "timm:test_vit4", "--img_size", 48]
    fails(main, *without, says=["timm has no weights for timm:test_vit4", "--backbone_weights"])


def test_weights_that_are_not_on_the_hub_have_their_own_address():
    assert imagenet.weights_url("timm:test_vit").endswith(
        "/timm/test_vit.r160_in1k/resolve/main/model.safetensors"
    )
    address = imagenet.weights_url("timm:legacy_senet154")
    assert address.endswith("legacy_senet154-e9eb9fe6.pth")
    assert imagenet.weights_name("timm:legacy_senet154") is None


def test_shared_statistics_keep_the_activations():
    network = build("timm:test_efficientnet", 1, 0.1, 3, 64).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        expected = network(images)
        network.share_batch_statistics()
        assert any(isinstance(module, nn.SyncBatchNorm) for module in network.modules())
        torch.testing.assert_close(network.eval()(images), expected)


def test_networks_that_cannot_train_on_one_image_are_known():
    assert has_map_of_one_place(build("timm:test_resnet", 1, 0.1, 3, 33), 32)
    assert not has_map_of_one_place(build("timm:test_resnet", 1, 0.1, 3, 64), 64)
    # Its batch norms see the tokens of all images in one row.
    assert not has_map_of_one_place(build("timm:levit_128s", 1, 0.1, 3, 128), 128)


@pytest.mark.slow
def test_training_in_two_processes(shapes, tmp_path):
    options = [*RUN, "--model", "timm:test_vit2", "--img_size", 48, "--total_epoch", 1]
    status, _, err = finish_ranks(start_ranks(2, "main.py", *options, "--output_dir", tmp_path / "run"))
    assert status == 0, err
    assert (tmp_path / "run" / "best.pth").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "suffix"), [("eva02_tiny_patch14_224", "onnx"), ("swinv2_tiny_window8_256", "pt2")]
)
def test_an_export_takes_batches_of_any_size(command, tmp_path, name, suffix):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    size = size_for(name)
    state = build(f"timm:{name}", 2, 0.3, 2, size).state_dict()
    config = {"model": f"timm:{name}", "lam": 0.3, "img_size": size, "normalize": "imagenet"}
    content = {"model": state, "config": config, "classes": ["a", "b"], "record": {}}
    torch.save(content, tmp_path / "m.pth")
    out = tmp_path / f"m.{suffix}"
    result = command(export, "--load_from", tmp_path / "m.pth", "--out", out, "--dynamic_batch")
    assert result.status == 0, result.err
    assert "batches of any size" in result.out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_efficientnet", "swinv2_tiny_window8_256"])
def test_compilation_traces_the_whole_network(name):
    """With the backend "eager", which needs no compiler."""
    size = size_for(name)
    network = build(f"timm:{name}", 2, 0.3, 3, size).eval()
    images = torch.rand(2, 3, size, size)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(images), network(images))


def test_without_timm_a_checkpoint_says_what_to_install(workdir, fails, monkeypatch):
    make_own(workdir)
    state = build("timm:test_resnet", 1, 0.1, 2, 64).state_dict()
    config = {"model": "timm:test_resnet", "lam": 0.1, "img_size": 64, "normalize": "none"}
    torch.save({"model": state, "config": config, "classes": ["a", "b"], "record": {}}, "m.pth")
    read_layout.cache_clear()
    monkeypatch.setitem(sys.modules, "timm", None)
    says = ["m.pth", "timm:test_resnet needs one more package: pip install timm"]
    fails(val, "--dataset", "mine", "--load_from", "m.pth", says=says)


def test_parameters_that_are_frozen_or_shared_stay(monkeypatch):
    create = timm.create_model

    def create_special(name, **options):
        trunk = create(name, **options)
        trunk.pos_embed.requires_grad_(False)
        trunk.blocks[1] = trunk.blocks[0]
        return trunk

    monkeypatch.setattr(timm, "create_model", create_special)
    network = build("timm:test_vit", 1, 0.1, 3, 64)
    assert network.trunk.pos_embed is not None
    assert network.trunk.blocks[1].mlp.fc1 is network.trunk.blocks[0].mlp.fc1
    assert network(torch.rand(2, 3, 64, 64)).shape == (2, 3)


def test_a_model_that_fails_at_its_own_size_is_not_blamed_on_the_size(monkeypatch):
    def fail(name, **options):
        raise ImportError("it needs another package")

    monkeypatch.setattr(timm, "create_model", fail)
    own_size = own_img_size("timm:test_vit")
    with pytest.raises(ValueError, match=r"cannot run timm:test_vit here \(it needs another package\)"):
        read_layout("timm:test_vit", own_size)
    with pytest.raises(ValueError, match=f"its own size is {own_size}"):
        read_layout("timm:test_vit", own_size + 32)


def test_images_are_multiples_of_both_sides_of_a_patch():
    trunk = SimpleNamespace(patch_embed=SimpleNamespace(patch_size=(8, 12)))
    timm_csra.check_patches(trunk, "timm:test_vit", 48)
    with pytest.raises(ValueError, match="a multiple of 24, not 32"):
        timm_csra.check_patches(trunk, "timm:test_vit", 32)


@pytest.mark.parametrize(
    "name", ["test_efficientnet", "regnetx_002", "mobilenetv4_conv_small_035", "resnext50_32x4d"]
)
def test_batch_norm_of_timm_is_folded(name):
    network = with_statistics(build(f"timm:{name}", 1, 0.1, 3, 64))
    fast = folded(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(fast(images), network(images), rtol=1e-4, atol=1e-5)
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
