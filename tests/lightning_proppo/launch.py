"""Runs a script in several processes that make up one gloo group."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

LIMIT = 120  # seconds, after which a launch is given up

# Joins the group; what the script leaves in `result` is handed back.
_FRAME = """
import os, sys
import torch
import torch.distributed as dist

torch.set_num_threads(1)
RANK, SIZE = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
dist.init_process_group(
    "gloo", init_method="file://" + os.environ["MEET"], rank=RANK, world_size=SIZE
)
result = None
{script}
torch.save(result, os.environ["RESULT"])
dist.destroy_process_group()
"""


def run_on_ranks(script: str, size: int, folder: Path) -> list[Any]:
    """Return what each rank's script has assigned to ``result``; ``RANK`` and ``SIZE`` are set."""
    path = folder / "script.py"
    path.write_text(_FRAME.format(script=script))
    processes = []
    for rank in range(size):
        environment = {
            **os.environ,
            "RANK": str(rank),
            "WORLD_SIZE": str(size),
            "MEET": str(folder / "meet"),
            "RESULT": str(folder / f"result{rank}"),
            "OMP_NUM_THREADS": "1",
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, str(path)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        told = [process.communicate(timeout=LIMIT)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    failed = [text for process, text in zip(processes, told, strict=True) if process.returncode]
    if failed:
        raise AssertionError("\n".join(failed))
    return [torch.load(folder / f"result{rank}") for rank in range(size)]
