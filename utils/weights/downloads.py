"""ImageNet weights: where they are published, and the cache of downloads."""

import contextlib
import os
import sys
from pathlib import Path

import torch
import torchvision
from torch import Tensor

from utils.runtime.cli import UserError

# timm's files, which the authors' Vision Transformers start from: trained on ImageNet-21k, then on ImageNet.
TIMM = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-vitjx"
VIT_URLS = {
    "vit_B16_224": f"{TIMM}/jx_vit_base_p16_224-80ecf9dd.pth",
    "vit_L16_224": f"{TIMM}/jx_vit_large_p16_224-4ee7a4dc.pth",
}


def imagenet_weights(model: str) -> dict[str, Tensor]:
    """Return a model's ImageNet weights, cached or downloaded; UserError if neither works."""
    url = VIT_URLS.get(model) or torchvision.models.get_model_weights(model).IMAGENET1K_V1.url
    cached = Path(torch.hub.get_dir(), "checkpoints", os.path.basename(url))
    try:
        with contextlib.redirect_stderr(sys.stdout):  # the download's progress; stderr is for errors
            return torch.hub.load_state_dict_from_url(url, None, "cpu", check_hash=True, weights_only=True)
    except Exception as error:  # of the network, the file system or torch.load
        if cached.exists():
            raise UserError(f"{cached} is damaged: delete it, or use --pretrained none") from None
        way_out = f"put the file {url} at {cached}, or use --pretrained none"
        raise UserError(f"cannot download ImageNet weights ({error}): {way_out}") from None
