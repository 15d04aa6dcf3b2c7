"""How tests train."""

from __future__ import annotations

from typing import Any

# Options of a Trainer: on the CPU, without a word, and without files.
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
