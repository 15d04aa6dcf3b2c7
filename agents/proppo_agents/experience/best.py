"""The best policy of a training so far: kept, and saved as a checkpoint of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from proppo_agents.experience.keeping import run_folder
from proppo_agents.experience.resuming import Progress
from proppo_agents.experience.trials import Trial, is_better


def keep_if_best(progress: Progress, trials: Sequence[Trial], policy: nn.Module) -> bool:
    """Keep the policy of the last trial if no other policy's was better; return whether it is so.

    Args:
        progress: where it is kept.
        trials: all there are.
        policy: that acted in the last one.
    """
    last = len(trials) - 1
    if progress.best_trial is not None and not is_better(trials, last, progress.best_trial):
        return False
    progress.best_trial = last
    progress.best_policy = {
        name: value.detach().cpu().clone() for name, value in policy.state_dict().items()
    }
    return True


def best_checkpoint(trainer: Any, resumed: bool) -> Path | None:
    """Return where the best policy of a run is saved: ``best.ckpt`` in its folder.

    All ranks have to call this.

    Args:
        trainer: the Trainer.
        resumed: whether the one that is there is of this run. Those of others are left alone.

    Returns:
        The path; None if the run saves no checkpoints.
    """
    path = run_folder(trainer, "best.ckpt")
    if path is None or not trainer.checkpoint_callbacks:
        return None
    number = 0
    while not resumed and trainer.strategy.broadcast(path.exists()):
        number += 1
        # As Lightning names its own.
        path = path.with_name(f"best-v{number}.ckpt")
    return path


def save_best(trainer: Any, path: Path | None, again: bool = True) -> None:
    """Save the present policy, without what a training goes on from; all ranks have to call this.

    Args:
        trainer: the Trainer.
        path: of the checkpoint; None: nothing is saved.
        again: whether one that is there is replaced.
    """
    if path is not None and (again or not trainer.strategy.broadcast(path.exists())):
        trainer.save_checkpoint(path, weights_only=True)
