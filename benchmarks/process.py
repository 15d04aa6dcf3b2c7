"""What a process takes of the machine's memory."""

from __future__ import annotations

from pathlib import Path


def resident(name: str = "VmRSS") -> int:
    """Return this process's VmRSS or VmHWM (its peak) in bytes; 0 where there is no /proc."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    line = next(line for line in status.read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])
