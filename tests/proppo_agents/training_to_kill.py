"""Trains a small agent, kills it again and again, and lets it go on: a script.

``python training_to_kill.py FOLDER SEED KILLS``. The parent imports everything and forks; the
children train, and tell it by a pipe in what phase they are, until it kills their process group.
``FOLDER/whole`` is a training that is left alone; in each ``FOLDER/chain-NUMBER`` is one that was
killed and went on until it came to its end. ``FOLDER/kills.json`` says how many died in each phase;
there are KILLS of them in each.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import select
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lightning_proppo import PropagationCallback, VarianceMonitor
from lightning_proppo.callbacks import checkpoints
from lightning_proppo.cli.resume import last_checkpoint
from lightning_proppo.installed_lightning import pl
from proppo_agents import PILCO, GPDynamics, RBFPolicy
from proppo_agents.experience import keeping
from proppo_agents.experience.files import read_episodes
from proppo_envs.cartpole import CartPoleSwingUpEnv

# For so many seconds at the most does the parent wait in a phase before it kills.
PHASES = {"collect": 0.03, "fit": 0.05, "optimize": 0.03, "write": 0.05}
BETWEEN = "-"
LIMIT = 200.0  # seconds for a training


def train(folder: Path) -> None:
    """Train to the end, from the last checkpoint if there is one."""
    check(folder)
    pl.seed_everything(3, verbose=False)
    agent = PILCO(
        spread=[1.0, 2.0, 3.0, 5.0],
        particles=8,
        steps=4,
        candidates=2,
        random_episodes=2,
        dynamics=GPDynamics(steps=10),
        policy=RBFPolicy(basis_functions=10),
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        precision="64-true",
        max_epochs=3,
        log_every_n_steps=1,
        logger=pl.loggers.CSVLogger(folder, name="", version=""),
        callbacks=[
            PropagationCallback("TP"),
            VarianceMonitor(every_n_steps=3, alarm="warn", patience=2),
            # In the middle of an epoch, and at its end.
            pl.callbacks.ModelCheckpoint(every_n_train_steps=3),
            pl.callbacks.ModelCheckpoint(filename="end-of-{epoch}", every_n_epochs=1),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(agent, ckpt_path=last_checkpoint(folder))
    trainer.save_checkpoint(folder / "end.pt")


def check(folder: Path) -> None:
    """Raise if a file of the run so far is spoilt, or an episode is there twice."""
    for path in folder.rglob("*.ckpt"):
        torch.load(path, weights_only=True)
    if (folder / "episodes").is_dir() and any((folder / "episodes").glob("*.npz")):
        found = [each.about["seed"] for each in read_episodes(folder / "episodes")]
        if len(set(found)) != len(found):
            raise RuntimeError(f"seeds of {folder}/episodes: {found}")


class Phases(pl.Callback):
    """Tells where the training is, and makes short phases long enough to be hit."""

    def __init__(self, folder: Path, pipe: int) -> None:
        self.folder, self.pipe = folder, pipe
        names = ((keeping, "collect_episode", "collect"), (GPDynamics, "fit", "fit"))
        for owner, name, phase in names:
            setattr(owner, name, self.told(getattr(owner, name), phase))
        self.optimize()
        self.slow_steps()
        self.slow_writes()
        self.note_episodes()

    def tell(self, phase: str) -> None:
        os.write(self.pipe, f"{phase}\n".encode())

    def told(self, function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            self.tell(phase)
            try:
                return function(*args, **options)
            finally:
                self.tell(BETWEEN)

        return wrapped

    def optimize(self) -> None:
        step = pl.loops.optimization.automatic._AutomaticOptimization
        step.run = self.told(step.run, "optimize")  # type: ignore[method-assign]

    def slow_steps(self) -> None:
        step = CartPoleSwingUpEnv.step

        def slow(env: Any, action: Any) -> Any:
            time.sleep(0.001)
            return step(env, action)

        CartPoleSwingUpEnv.step = slow  # type: ignore[method-assign]

    def slow_writes(self) -> None:
        write_whole, replace, save = checkpoints.write_whole, os.replace, torch.save

        class Slow:
            def __init__(self, file: Any) -> None:
                self.file = file

            def write(self, data: Any) -> Any:
                time.sleep(0.0003)
                written = self.file.write(data)
                self.file.flush()
                return written

            def __getattr__(self, name: str) -> Any:
                return getattr(self.file, name)

        def slow_save(value: Any, file: Any) -> None:
            save(value, Slow(file))

        def slow_replace(*args: Any) -> None:
            time.sleep(0.005)
            replace(*args)
            time.sleep(0.005)

        def told(*args: Any) -> None:
            torch.save, os.replace = slow_save, slow_replace
            try:
                self.told(write_whole, "write")(*args)
            finally:
                torch.save, os.replace = save, replace

        checkpoints.write_whole = told

    def note_episodes(self) -> None:
        """Note each episode that was acted and is on the disk."""
        collect_and_keep = keeping.collect_and_keep
        import proppo_agents.pilco

        def noted(env: Any, policy: Any, seed: int, *args: Any) -> Any:
            episode = collect_and_keep(env, policy, seed, *args)
            with (self.folder / "acted").open("a") as file:
                file.write(f"{seed}\n")
            return episode

        proppo_agents.pilco.collect_and_keep = noted


def start(folder: Path) -> tuple[int, int]:
    """Fork a training; return its process, which has a group of its own, and its pipe."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return child, reader
    status = 1
    try:
        os.setpgid(0, 0)
        os.close(reader)
        Phases(folder, writer)
        train(folder)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def lines_of(pipe: int, until: float) -> Any:
    """Yield what is told, as it comes, until the pipe's end."""
    rest = b""
    while True:
        if not select.select([pipe], [], [], max(0.0, until - time.monotonic()))[0]:
            raise TimeoutError("a training hangs")
        data = os.read(pipe, 1 << 16)
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line.decode()


def kill_in(folder: Path, phase: str | None, occurrence: int, delay: float) -> str | None:
    """Train, and kill in a phase; return where it died, or None if it came to its end before."""
    child, pipe = start(folder)
    last, seen, killed = BETWEEN, 0, False
    try:
        for last in lines_of(pipe, time.monotonic() + LIMIT):
            seen += last == phase
            if phase is not None and seen == occurrence and not killed:
                time.sleep(delay)
                os.killpg(child, signal.SIGKILL)
                killed = True
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        os.close(pipe)
    if os.WIFSIGNALED(status):
        return last
    if os.WEXITSTATUS(status):
        raise RuntimeError(f"the training in {folder} failed")
    return None


def main(folder: Path, seed: int, kills: int) -> None:
    """Do what the script is there for."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger(pl.__name__).setLevel(logging.ERROR)
    choose = random.Random(seed)
    (folder / "whole").mkdir()
    kill_in(folder / "whole", None, 0, 0.0)
    died: Counter[str] = Counter(dict.fromkeys(PHASES, 0))
    chain = -1
    ended = True
    while not ended or min(died[phase] for phase in PHASES) < kills:
        if ended:
            chain += 1
            (folder / f"chain-{chain}").mkdir()
        missing = [phase for phase in PHASES if died[phase] < kills]
        phase = choose.choice(missing) if missing else None
        delay = choose.uniform(0.0, PHASES[phase]) if phase else 0.0
        where = kill_in(folder / f"chain-{chain}", phase, choose.randint(1, 2), delay)
        ended = where is None
        died[where or "end"] += 1
    (folder / "kills.json").write_text(json.dumps(died))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
