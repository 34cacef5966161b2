"""torchvision's Vision Transformer with a CSRA classifier over its patch tokens."""

import math
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from pipeline.network import Network, make_classifier, rename

PATCH = 16
# Layers, attention heads per layer, width of a token, width of the MLP.
VITS = {"vit_B16_224": (12, 12, 768, 3072), "vit_L16_224": (24, 16, 1024, 4096)}
# {start of a name in timm's files, and so in the released checkpoints: its start in torchvision's}.
TIMM = {
    r"patch_embed\.proj\.": "conv_proj.",
    r"cls_token$": "class_token",
    r"pos_embed$": "encoder.pos_embedding",
    r"blocks\.(\d+)\.norm([12])\.": r"encoder.layers.encoder_layer_\1.ln_\2.",
    r"blocks\.(\d+)\.attn\.qkv\.": r"encoder.layers.encoder_layer_\1.self_attention.in_proj_",
    r"blocks\.(\d+)\.attn\.proj\.": r"encoder.layers.encoder_layer_\1.self_attention.out_proj.",
    r"blocks\.(\d+)\.mlp\.fc1\.": r"encoder.layers.encoder_layer_\1.mlp.0.",
    r"blocks\.(\d+)\.mlp\.fc2\.": r"encoder.layers.encoder_layer_\1.mlp.3.",
    r"norm\.": "encoder.ln.",
}


class ViT_CSRA(Network):
    """A Vision Transformer whose patch tokens, as a feature map, go to multi-head CSRA as `classifier`.

    model: a key of VITS. img_size: side of the images in pixels, a multiple of 16. Weights start random.
    """

    def __init__(self, num_heads: int, lam: float, num_classes: int, model: str, img_size: int = 224):
        super().__init__()
        layers, heads, width, mlp = VITS[model]
        norm = partial(nn.LayerNorm, eps=1e-6)
        vit = VisionTransformer(img_size, PATCH, layers, heads, width, mlp, norm_layer=norm)
        self.conv_proj = vit.conv_proj
        self.class_token = vit.class_token
        self.encoder = vit.encoder
        self.img_size = img_size
        self.classifier = make_classifier(num_heads, lam, width, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) in [0, 1] to the patch tokens after the last norm, (B, D, S/16, S/16)."""
        patches = self.conv_proj(self.normalize(images))
        tokens = patches.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        # CSRA uses the patch tokens alone; the class token only takes part in the self-attention.
        return self.encoder(tokens)[:, 1:].transpose(1, 2).reshape(patches.shape)

    def adapt(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a state dict with torchvision's names and position embeddings resized to this image size."""
        adapted = rename(state_dict, TIMM)
        if "encoder.pos_embedding" in adapted:
            adapted = dict(interpolate_embeddings(self.img_size, PATCH, adapted))
        return adapted


def read_vit(state_dict: dict[str, Tensor]) -> tuple[str | None, int | None]:
    """Return the name and image size of the ViT in a state dict, None for what it does not tell.

    Raises ValueError for a ViT whose width is not in VITS.
    """
    tensors = rename(state_dict, TIMM)
    token = tensors.get("class_token")
    embedding = tensors.get("encoder.pos_embedding")
    if token is None or token.ndim != 3:
        return None, None
    models = {VITS[model][2]: model for model in VITS}  # by their width
    width = token.shape[2]
    if width not in models:
        raise ValueError(f"its Vision Transformer has width {width}, not {' or '.join(map(str, models))}")
    if embedding is None or embedding.ndim != 3:
        return models[width], None
    return models[width], PATCH * math.isqrt(embedding.shape[1] - 1)
