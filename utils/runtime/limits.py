"""Limits on what is read, unless the caller sets others."""

MAX_PIXELS = 100_000_000  # of an image
# val.py and demo.py compile a network on a CPU from this many images on. Large networks repay the time to
# compile sooner (ResNet-50 from 80 on), those that gain least at about as many (docs/training.md).
COMPILE_FROM = 1000
