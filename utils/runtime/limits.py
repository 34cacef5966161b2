"""Limits on what is read, unless the caller sets others."""

MAX_PIXELS = 100_000_000  # of an image
# val.py and demo.py compile a network on a CPU from this many images on. ResNet-50 repays the time to compile
# from 80 images on, ViT-B/16 and MobileNetV2 from 1,100 and 1,200 (docs/training.md).
COMPILE_FROM = 1000
