"""Launching scripts whose processes work together, and ending them all if they hang."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

LIMIT = 600  # seconds, after which a launch is given up: busy machines take 100

# Joins the group; what the script leaves in `result` is handed back.
_FRAME = """
import os, sys
import torch
import torch.distributed as dist

torch.set_num_threads(1)
RANK, SIZE = int(sys.argv[1]), int(sys.argv[2])
dist.init_process_group(
    "gloo", init_method="file://" + sys.argv[3], rank=RANK, world_size=SIZE
)
result = None
{script}
torch.save(result, sys.argv[4])
dist.barrier()
dist.destroy_process_group()
sys.stdout.flush()
os._exit(0)  # threads of a gloo group may abort a process that ends as usual
"""


@dataclass(frozen=True)
class Ended:
    """What came of a launch.

    Attributes:
        pid: of the process that was started, and of its process group.
        status: its exit status.
        stdout: of it and its children.
        stderr: likewise.
    """

    pid: int
    status: int
    stdout: str
    stderr: str


def free_ports(count: int) -> list[int]:
    """Return ports that differ: all are taken before the first is given back."""
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in taken:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in taken]


def launch(folder: Path, *arguments: str) -> Ended:
    """Run Python with these arguments in a folder; a hang ends all its processes and the test."""
    return launch_together(folder, [arguments])[0]


def launch_together(
    folder: Path,
    commands: Sequence[Sequence[str]],
    program: str = sys.executable,
    environment: Mapping[str, str] | None = None,
) -> list[Ended]:
    """Run Python, or another program, several times at once.

    Args:
        folder: to run in.
        commands: the arguments of each.
        program: what is run.
        environment: variables besides this process's; each has a ``MASTER_PORT`` of its own.
    """
    start = time.monotonic()
    running = [
        subprocess.Popen(
            [program, *arguments],
            env=_environment(port) | dict(environment or {}),
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for arguments, port in zip(commands, free_ports(len(commands)), strict=True)
    ]
    ended = []
    try:
        for process in running:
            left = max(0.0, LIMIT - (time.monotonic() - start))
            out, err = process.communicate(timeout=left)
            ended.append(Ended(process.pid, process.returncode, out, err))
    except subprocess.TimeoutExpired:
        for process in running:
            _end(process)
        said = "\n".join(str(process.communicate()) for process in running)
        pytest.fail(f"the processes hung for {LIMIT} seconds; they said:\n{said}")
    return ended


def launch_successfully(folder: Path, *arguments: str) -> str:
    """Run Python as :func:`launch` does, and return its output; an error fails the test."""
    ended = launch(folder, *arguments)
    assert ended.status == 0, ended.stdout + ended.stderr
    return ended.stdout


def run_on_ranks(script: str, size: int, folder: Path) -> list[Any]:
    """Return what each rank's script has assigned to ``result``; ``RANK`` and ``SIZE`` are set.

    The ranks make up a gloo group, and know nothing of Lightning.
    """
    path = folder / "script.py"
    path.write_text(_FRAME.format(script=script))
    meet = str(folder / "meet")
    commands = [
        [str(path), str(rank), str(size), meet, str(folder / f"result{rank}")]
        for rank in range(size)
    ]
    ended = launch_together(folder, commands)
    said = "\n".join(each.stdout + each.stderr for each in ended if each.status)
    assert not said, said
    return [torch.load(folder / f"result{rank}") for rank in range(size)]


def _environment(port: int) -> dict[str, str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "RANK", "PL_GLOBAL_SEED"):
        environment.pop(name, None)
    return environment | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
