"""What a training says of itself, in the log."""

from __future__ import annotations

import sys

from tqdm import tqdm

from lightning_proppo.installed_lightning import rank_zero_info


def report(message: str) -> None:
    """Log a message on a line of its own, from the first rank; progress bars make way for it."""
    with tqdm.external_write_mode():
        # The bar's end may wait in the buffer, and the log goes another way.
        sys.stdout.flush()
        rank_zero_info(message)
