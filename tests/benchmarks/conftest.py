"""Benchmarks are no package that is installed; only ``python -m pytest`` would find them."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))
