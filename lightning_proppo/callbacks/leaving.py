"""How a rank leaves the process group: at its end, and where it fails so that nobody waits for it.

The others learn of a failure by the process's end: gloo's connections break, and launchers
(Lightning's, torchrun, ``srun --kill-on-bad-exit``) end the rest. So it must come to its end, with
nothing in the way that waits for them: a checkpoint saved on an exception begins with a barrier,
which they never reach.
"""

from __future__ import annotations

import atexit
import logging
import subprocess
import time
from collections.abc import Sequence
from typing import Any

import torch.distributed

from lightning_proppo.errors import add_note

_LOGGER = logging.getLogger("lightning_proppo")
_GRACE = 10.0  # seconds that launched ranks have to end by themselves
_PAUSE = 0.2  # seconds
# What gloo says where another rank's process has ended; NCCL raises DistError.
_BROKEN = ("Connection closed by peer", "Connection reset by peer")


def leave_at_exit() -> None:
    """Let this process leave its group before it ends.

    Lightning does so for NCCL alone. A process that ends with threads of a gloo group may be
    aborted, and a run that had succeeded counts as failed.
    """
    if _in_a_group():
        atexit.unregister(_leave)
        atexit.register(_leave)


def leave_on_failure(trainer: Any, exception: BaseException) -> None:
    """Leave the process group after an exception, without waiting for anything.

    The exception's traceback is logged first, lest something later hides it; one that merely tells
    that another rank has gone gets a note that says so. Interruptions and ``SystemExit`` reach all
    ranks alike and leave the group as it is, as does an exception in a single process.

    Args:
        trainer: the Trainer.
        exception: what was raised.
    """
    if not _in_a_group() or trainer.world_size == 1 or not isinstance(exception, Exception):
        return
    if _another_has_gone(exception):
        add_note(
            exception,
            "Another rank has ended while this one waited for it; the traceback of that rank "
            "tells why.",
        )
    else:
        _LOGGER.error(
            "Rank %d of %d failed; it leaves the process group, and the others end with it.",
            trainer.global_rank,
            trainer.world_size,
            exc_info=exception,
        )
    breaks = torch.distributed.get_backend() == "gloo"
    # An abort does not wait for what is on its way; older groups of PyTorch's have none.
    abort = getattr(torch.distributed.group.WORLD, "abort", None)
    if abort is not None:
        abort()
    _leave()
    launched = [
        process
        for process in getattr(trainer.strategy.launcher, "procs", None) or []
        if isinstance(process, subprocess.Popen)
    ]
    if launched and not breaks:
        # Lightning ends the first rank when another has failed, but not the others after the first.
        atexit.register(_end, launched)


def _in_a_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _leave() -> None:
    if _in_a_group():
        # A thread of gloo's that still drops the tensors of the last collective wants the
        # interpreter, which this one holds while it waits for that thread's end (seen with torch
        # 2.6): let it have it first.
        time.sleep(_PAUSE)
        torch.distributed.destroy_process_group()


def _another_has_gone(exception: Exception) -> bool:
    return isinstance(exception, torch.distributed.DistError) or any(
        words in str(exception) for words in _BROKEN
    )


def _end(processes: Sequence[subprocess.Popen[Any]], grace: float | None = None) -> None:
    """Wait for processes that are about to end, and kill those that are not.

    Args:
        processes: launched by this one.
        grace: seconds, for all together; None: ``_GRACE``.
    """
    left = _GRACE if grace is None else grace
    for process in processes:
        try:
            process.wait(left)
        except subprocess.TimeoutExpired:
            left = 0.0
            # In a collective, or in a kernel of one, nothing gentler is heard.
            process.kill()
