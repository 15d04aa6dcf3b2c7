"""What options of the commands are read with."""

from __future__ import annotations

import argparse


def positive(text: str) -> int:
    """Return a number that is at least 1, as argparse wants it."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; got {value}")
    return value
