"""ImageNet weights: where they are published."""

import torchvision

# timm's files, which the authors' Vision Transformers start from: trained on ImageNet-21k, then on ImageNet.
TIMM_RELEASE = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-vitjx"
VIT_URLS = {
    "vit_B16_224": f"{TIMM_RELEASE}/jx_vit_base_p16_224-80ecf9dd.pth",
    "vit_L16_224": f"{TIMM_RELEASE}/jx_vit_large_p16_224-4ee7a4dc.pth",
}


def weights_url(model: str) -> str:
    """Return where a model's ImageNet weights are published."""
    if model in VIT_URLS:
        return VIT_URLS[model]
    url: str = torchvision.models.get_model_weights(model)["IMAGENET1K_V1"].url
    return url
