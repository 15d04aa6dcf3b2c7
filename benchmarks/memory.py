"""Whether memory stays flat: in a long training, and where rollouts end in exceptions.

    python -m benchmarks.memory                    # 20,000 training steps, 200 broken rollouts
    python -m benchmarks.memory --estimators RP LR TP TPX
    python -m benchmarks.memory --steps 2000       # with less patience

The chaotic recurrent network (Sec. 4 of the Proppo paper), small, is trained in a Lightning Trainer
with the callback. Then the same rollouts are broken off by exceptions, in turn: between two
samples, in the cost function, by costs that are refused, and in the backward pass. Resident memory
is read a hundred times (Linux only): what it was in the second tenth, after the warm-up, is
compared with the last. Each rollout's tape is watched by a weak reference, without the garbage
collector's help. The command fails if memory grows by more than 2 % or a tape outlives its rollout.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import statistics
import sys
import time
import warnings
import weakref
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.process import resident
from lightning_proppo import PropagationCallback, PropagationManager
from lightning_proppo.installed_lightning import pl
from lightning_proppo.propagators import Propagator, estimator_names
from proppo_agents import ChaoticRNNModule

LIMIT = 0.02
READINGS = 100


class Watch:
    """Reads the process's memory, and keeps weak references to tapes.

    Args:
        total: how many steps there will be.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.bytes: list[int] = []
        self.tapes: list[weakref.ref[Any]] = []
        self.outlived = 0

    def begin(self, manager: PropagationManager) -> None:
        """Watch the tape that the next rollout is recorded on; the one before must be gone."""
        self.count()
        self.tapes.append(weakref.ref(manager._tape))

    def count(self) -> None:
        """Count the tapes that should be gone and are not."""
        self.outlived += sum(tape() is not None for tape in self.tapes)
        self.tapes.clear()

    def end(self, step: int) -> None:
        """Read the memory after so many steps, now and then."""
        if step % max(1, self.total // READINGS) == 0:
            self.bytes.append(resident())

    def row(self) -> tuple[float, float, float]:
        """Return MiB after the warm-up and at the end, and the growth between the two."""
        part = max(1, len(self.bytes) // 10)
        first = statistics.median(self.bytes[part : 2 * part] or self.bytes)
        last = statistics.median(self.bytes[-part:])
        return first / 2**20, last / 2**20, last / first - 1 if first else 0.0


class WatchTraining(pl.Callback):
    """Watches each batch of a training. It stands behind the :class:`PropagationCallback`.

    Args:
        watch: what is told.
        bar: advances by one at each batch.
    """

    def __init__(self, watch: Watch, bar: Any) -> None:
        self.watch, self.bar = watch, bar

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Watch the rollout's tape."""
        self.watch.begin(pl_module.manager)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Read the memory."""
        self.watch.end(trainer.global_step)
        self.bar.update()


def small_network(particles: int, horizon: int, steps: int = 1) -> ChaoticRNNModule:
    """Return the module, always with the same beta."""
    return ChaoticRNNModule(particles=particles, horizon=horizon, steps=steps)


def train(estimator: str, arguments: argparse.Namespace, bar: Any) -> Watch:
    """Train for so many steps."""
    watch = Watch(arguments.steps)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=arguments.steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[PropagationCallback(estimator), WatchTraining(watch, bar)],
    )
    trainer.fit(small_network(arguments.particles, arguments.horizon, steps=1000))
    watch.count()
    return watch


class Fails(Propagator):
    """A node whose backward computation raises."""

    def forward_impl(self, x: Any, node: Any = None) -> Any:
        """Keep nothing but the output."""
        return {"output": x}

    def backward_impl(self, node: Any, message: Any) -> Any:
        """Raise."""
        raise ZeroDivisionError


def break_off(module: ChaoticRNNModule, way: int) -> None:
    """Roll the network out halfway and raise, in one of four ways."""
    manager, system = module.manager, module.system
    x = system.initial_state(module.particles)
    for _ in range(system.horizon // 2):
        x = manager.sample(system.transition(x, module.beta))
        manager.append_loss(x, lossfunc=system.cost)
    if way == 0:
        raise ZeroDivisionError
    if way == 1:
        manager.append_loss(x, lossfunc=lambda x: 1 / 0)
    if way == 2:
        manager.append_loss(x)  # not one cost for each particle
    manager.forward(x, local_propagator=Fails())
    manager.loss().backward()


def break_rollouts(estimator: str, arguments: argparse.Namespace, bar: Any) -> Watch:
    """Break so many rollouts off."""
    watch = Watch(arguments.rollouts)
    module = small_network(arguments.particles, arguments.horizon)
    module.manager = PropagationManager(estimator)
    for i in range(arguments.rollouts):
        with contextlib.suppress(ZeroDivisionError, ValueError), module.manager.rollout():
            watch.begin(module.manager)
            break_off(module, i % 4)
        watch.end(i)
        bar.update()
    watch.count()
    return watch


def main() -> int:
    """Print the table; return 1 if memory is not flat."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--rollouts", type=int, default=200)
    parser.add_argument("--estimators", nargs="+", default=["TP"], choices=estimator_names())
    parser.add_argument("--particles", type=int, default=20)
    parser.add_argument("--horizon", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if min(arguments.steps, arguments.rollouts, arguments.particles, arguments.horizon) < 2:
        parser.error("steps, rollouts, particles and horizon must be at least 2")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    logging.getLogger(pl.__name__).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*does not have many workers")
    sys.stdout.write(
        f"{'estimator':<9} {'what':<15} {'count':>6} {'s':>6} {'MiB warm':>9} {'MiB end':>8} "
        f"{'growth':>7} {'tapes that outlived':>20}\n"
    )
    flat = True
    for estimator in arguments.estimators:
        for what, measure, count in (
            ("training steps", train, arguments.steps),
            ("broken rollouts", break_rollouts, arguments.rollouts),
        ):
            began = time.perf_counter()
            with tqdm(total=count, desc=what, leave=False, disable=None) as bar:
                watch = measure(estimator, arguments, bar)
            warm, end, growth = watch.row()
            flat &= growth <= LIMIT and watch.outlived == 0
            sys.stdout.write(
                f"{estimator:<9} {what:<15} {count:6d} {time.perf_counter() - began:6.1f} "
                f"{warm:9.1f} {end:8.1f} {growth:7.2%} {watch.outlived:20d}\n"
            )
            sys.stdout.flush()
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
