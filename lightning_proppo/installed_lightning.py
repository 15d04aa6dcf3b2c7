"""Lightning, by the name that it is installed under: ``pytorch_lightning``, or else ``lightning``.

Both are the same software, but each takes modules and callbacks of its own classes only (callbacks
of the other are let through since 2.6). All of this project's come from the one that is named
here. Where both are installed, that is ``pytorch_lightning``.
"""

from __future__ import annotations

try:
    import pytorch_lightning as pl
    from pytorch_lightning.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
except ModuleNotFoundError as missing:
    if missing.name != "pytorch_lightning":
        raise
    try:
        import lightning.pytorch as pl  # type: ignore[no-redef]
        from lightning.pytorch.utilities import (
            rank_zero_info,
            rank_zero_only,
            rank_zero_warn,
        )
    except ModuleNotFoundError as error:
        if error.name not in ("lightning", "lightning.pytorch"):
            raise
        raise ModuleNotFoundError(
            "Lightning is not installed; install pytorch-lightning, or lightning, which has the "
            "same under the name lightning.pytorch.",
            name=error.name,
        ) from error

__all__ = ["pl", "rank_zero_info", "rank_zero_only", "rank_zero_warn"]
