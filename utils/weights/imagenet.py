"""ImageNet weights: where they are published."""

from pathlib import Path

import torchvision

from pipeline.timm_csra import is_timm, pretrained_cfg
from utils.runtime.errors import UserError

# timm's files, which the authors' Vision Transformers start from: trained on ImageNet-21k, then on ImageNet.
TIMM_RELEASE = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-vitjx"
VIT_URLS = {
    "vit_B16_224": f"{TIMM_RELEASE}/jx_vit_base_p16_224-80ecf9dd.pth",
    "vit_L16_224": f"{TIMM_RELEASE}/jx_vit_large_p16_224-4ee7a4dc.pth",
}


HUB_FILE = "model.safetensors"  # what a file of timm's weights is called on the Hugging Face hub


def weights_url(model: str) -> str:
    """Return where a model's ImageNet weights, or those that timm has for it, are published.

    Raises UserError if timm has none.
    """
    if is_timm(model):
        return timm_url(model)
    if model in VIT_URLS:
        return VIT_URLS[model]
    url: str = torchvision.models.get_model_weights(model)["IMAGENET1K_V1"].url
    return url


def timm_url(model: str) -> str:
    """Return where timm's weights for a model are published; UserError if there are none."""
    cfg = pretrained_cfg(model)
    if cfg.hf_hub_id:
        import huggingface_hub  # which timm needs, too

        address: str = huggingface_hub.hf_hub_url(cfg.hf_hub_id, HUB_FILE)
        return address
    if not cfg.url:
        raise UserError(f"timm has no weights for {model}: give a file by --backbone_weights")
    return str(cfg.url)


def is_on_hub(model: str) -> bool:
    """Return whether the weights of a model are on the Hugging Face hub, as most of timm's are."""
    return is_timm(model) and bool(pretrained_cfg(model).hf_hub_id)


def weights_name(model: str) -> str | None:
    """Return the name for the file of a model's weights in torch.hub's folder; None for that of its URL."""
    if not is_on_hub(model):
        return None
    cfg = pretrained_cfg(model)
    return f"{cfg.architecture}.{cfg.tag}.safetensors"  # every file on the hub has the same name


def file_in_hub_cache(model: str) -> Path | None:
    """Return the file of a model's weights if the Hugging Face hub's own cache has it, else None."""
    if not is_on_hub(model):
        return None
    import huggingface_hub

    found = huggingface_hub.try_to_load_from_cache(pretrained_cfg(model).hf_hub_id, HUB_FILE)
    return Path(found) if isinstance(found, str) else None
