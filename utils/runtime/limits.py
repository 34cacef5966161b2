"""Limits on what is read, unless the caller sets others."""

MAX_PIXELS = 100_000_000  # of an image
