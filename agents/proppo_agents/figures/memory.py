"""How much memory there is."""

from __future__ import annotations

import os
from pathlib import Path

# What an experiment may take of what is free.
SHARE = 0.7


def available_memory() -> int:
    """Return how many bytes of main memory can be had, as far as the system tells."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        if "MemAvailable" in lines:
            free = min(free, 1024 * int(lines["MemAvailable"].split()[0]))
    # A container's own limit, which meminfo does not know of.
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (told := limit.read_text().strip()).isdigit():
        free = min(free, int(told))
    return free


def split_by_memory(sizes: dict[int, float]) -> tuple[list[int], list[str]]:
    """Return which sizes fit, and a line about each that does not.

    Args:
        sizes: how many bytes each takes.
    """
    budget = SHARE * available_memory()
    fitting = [size for size, needed in sizes.items() if needed <= budget]
    left_out = [
        f"{size:,} is left out: it takes about {needed / 1e9:.1f} GB, and {SHARE:.0%} of the free "
        f"memory are {budget / 1e9:.1f} GB"
        for size, needed in sizes.items()
        if needed > budget
    ]
    return fitting, left_out
