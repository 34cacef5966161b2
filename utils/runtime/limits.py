"""Limits on what is read, unless the caller sets others."""

MAX_PIXELS = 100_000_000  # of an image
COMPILE_FROM = 2000  # images; val.py and demo.py compile for these many, fewer do not repay the time
