"""ImageNet weights: where they are published, and the cache of downloads."""

import contextlib
import hashlib
import http.client
import sys
from pathlib import Path

import torch
import torchvision
from torch import Tensor

from utils.runtime.errors import UserError
from utils.weights.contents import load_checkpoint

# timm's files, which the authors' Vision Transformers start from: trained on ImageNet-21k, then on ImageNet.
TIMM = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-vitjx"
VIT_URLS = {
    "vit_B16_224": f"{TIMM}/jx_vit_base_p16_224-80ecf9dd.pth",
    "vit_L16_224": f"{TIMM}/jx_vit_large_p16_224-4ee7a4dc.pth",
}


def imagenet_weights(model: str) -> dict[str, Tensor]:
    """Return a model's ImageNet weights, cached or downloaded; UserError if neither works."""
    url = weights_url(model)
    cached = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    if not cached.exists():
        download(url, cached)
    # Many of these files are from torch before 1.6 and hold no checksums: only the hash shows damage.
    with open(cached, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(hash_in_name(cached)):
        raise UserError(f"{cached} is damaged: delete it, or use --pretrained none")
    weights: dict[str, Tensor] = load_checkpoint(cached)["model"]
    return weights


def weights_url(model: str) -> str:
    """Return where a model's ImageNet weights are published."""
    if model in VIT_URLS:
        return VIT_URLS[model]
    url: str = torchvision.models.get_model_weights(model)["IMAGENET1K_V1"].url
    return url


def hash_in_name(path: Path) -> str:
    """Return the first digits of a file's SHA-256, which end its name, as in resnet18-f37072fd.pth."""
    return path.stem.rpartition("-")[2]


def download(url: str, path: Path) -> None:
    """Download a file whose name ends with its hash; UserError if that fails, and then no file is left."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        print(f'Downloading: "{url}" to {path}')
        with contextlib.redirect_stderr(sys.stdout):  # its progress; stderr is for errors
            torch.hub.download_url_to_file(url, str(path), hash_in_name(path))
    except (OSError, http.client.HTTPException, RuntimeError) as error:  # RuntimeError: another hash
        way_out = f"put the file {url} at {path}, or use --pretrained none"
        raise UserError(f"cannot download ImageNet weights ({error}): {way_out}") from error
