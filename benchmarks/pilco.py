"""How often, and after how much real experience, an agent learns: over seeds, for each estimator.

    python -m benchmarks.pilco --csv pilco.csv                      # TP, 10 seeds, the swing-up
    python -m benchmarks.pilco --csv pilco.csv --configs configs/benchmark/*.yaml    # everything
    python -m benchmarks.pilco --csv pilco.csv --png pilco.png -- --trainer.max_epochs=15
    python -m benchmarks.pilco --csv pilco.csv --seeds              # the table of what is there

A run is ``lightning-proppo fit`` with the configuration (or other estimators than its own:
``--estimators``) and the seed, and then 20 episodes of the final policy (``lightning-proppo
evaluate``); what follows ``--`` is handed to ``fit``. It adds one line to the CSV, and is left out
where its line is there already: a benchmark that was stopped goes on. *Learned* counts the seeds
whose final policy succeeds in at least 18 of 20 episodes, with a Wilson interval of 95 %; *found*,
those that have succeeded in any trial; experience is that until the end of the first trial that
succeeds, the random episodes included.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

FIELDS = ["config", "options", "estimator", "seed", "trials", "first_success", "experience_seconds"]
FIELDS += ["successes", "final_successes", "final_return", "wall_seconds", "costs"]
EPISODES, LEARNED = 20, 18
# Okabe and Ito's colours.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
MARKERS = "osD^vPX"


class RunFailed(Exception):
    """A run ended with an error; its output."""


def run(config: Path, estimator: str, seed: int, options: Sequence[str]) -> dict[str, Any]:
    """Train and evaluate one agent, and return its line."""
    with tempfile.TemporaryDirectory() as folder:
        logger = "--trainer.logger"
        began = time.perf_counter()
        call(
            "fit",
            f"--config={config}",
            f"--seed_everything={seed}",
            f"--trainer.callbacks.propagator={estimator}",
            "--trainer.enable_progress_bar=false",
            f"{logger}=CSVLogger",
            f"{logger}.save_dir={folder}",
            f"{logger}.name=run",
            f"{logger}.version=0",
            *options,
        )
        wall = time.perf_counter() - began
        found = Path(folder) / "run" / "version_0"
        checkpoint = max(found.glob("checkpoints/*.ckpt"), key=os.path.getmtime)
        episodes = f"--episodes={EPISODES}"
        told = call("evaluate", f"--ckpt={checkpoint}", episodes, "--seed=1000", "--json")
        evaluated = json.loads(told.splitlines()[-1])
        with (found / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
    costs = [float(row["real/cost"]) for row in rows if row.get("real/cost")]
    success = [float(row["real/success"]) for row in rows if row.get("real/success")]
    first = next((k for k, succeeded in enumerate(success) if succeeded), None)
    return {
        "config": config.stem,
        "options": " ".join(options),
        "estimator": estimator,
        "seed": seed,
        "trials": len(costs),
        "first_success": "" if first is None else first,
        "experience_seconds": "" if first is None else (first + 1) * seconds_of_episode(config),
        "successes": int(sum(success)),
        "final_successes": sum(evaluated["success"]),
        "final_return": statistics.mean(evaluated["returns"]),
        "wall_seconds": wall,
        "costs": " ".join(f"{value:.4g}" for value in costs),
    }


def call(*arguments: str) -> str:
    """Run our command with one thread, and return what it wrote."""
    done = subprocess.run(
        [sys.executable, "-m", "lightning_proppo", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RunFailed(f"lightning-proppo {' '.join(arguments)}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def seconds_of_episode(config: Path) -> float:
    """Return the seconds that an episode of a configuration's environment lasts."""
    import gymnasium

    model = yaml.safe_load(config.read_text())["model"]["init_args"]
    env = gymnasium.make(model["environment"], **model.get("environment_options", {}))
    steps = env.spec.max_episode_steps  # type: ignore[union-attr]
    step = next(
        (getattr(env.unwrapped, n) for n in ("time_step", "dt") if hasattr(env.unwrapped, n)), None
    )
    env.close()
    return float(steps * step) if steps and step else math.nan


def estimator_of(config: Path) -> str:
    """Return the name of the estimator that a configuration's last callback is given."""
    callbacks = yaml.safe_load(config.read_text())["trainer"]["callbacks"]
    return str(callbacks[-1]["init_args"]["propagator"])


def wilson(successes: int, count: int) -> tuple[float, float]:
    """Return the Wilson interval of 95 % of a share (Wilson 1927)."""
    z = 1.959964
    share, scale = successes / count, 1 + z * z / count
    middle = (share + z * z / (2 * count)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def read(path: Path) -> list[dict[str, str]]:
    """Return the lines that are there."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def add(line: dict[str, Any], path: Path) -> None:
    """Add a run's line to those that are there."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(line)


def groups(rows: Sequence[dict[str, str]]) -> dict[tuple[str, str, str], list[dict[str, str]]]:
    """Return the lines of each configuration, its options, and estimator."""
    found: dict[tuple[str, str, str], list[dict[str, str]]] = {}
    for row in rows:
        found.setdefault((row["config"], row["options"], row["estimator"]), []).append(row)
    return found


def table(rows: Sequence[dict[str, str]]) -> list[str]:
    """Return the summary as a Markdown table."""
    lines = [
        "| configuration | estimator | seeds | learned | 95 % interval | found | experience until "
        "then, s | final return | minutes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (config, options, estimator), own in groups(rows).items():
        learned = sum(int(row["final_successes"]) >= LEARNED for row in own)
        low, high = wilson(learned, len(own))
        until = [float(row["experience_seconds"]) for row in own if row["experience_seconds"]]
        returns = [float(row["final_return"]) for row in own]
        minutes = [float(row["wall_seconds"]) / 60 for row in own]
        lines.append(
            f"| {config}{f' ({options})' if options else ''} | {estimator} | {len(own)} "
            f"| {learned} | {low:.2f} to {high:.2f} | {len(until)} | {_spread(until)} "
            f"| {_spread(returns)} | {_spread(minutes)} |"
        )
    return lines


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def draw(rows: Sequence[dict[str, str]], path: Path) -> None:
    """Draw the real cost against the trial, a panel for each task.

    A line is the median over seeds, a band its quartiles, a colour an estimator.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    panels: dict[str, dict[str, list[dict[str, str]]]] = {}
    for (config, options, estimator), own in groups(rows).items():
        task = config.removesuffix(f"_{estimator.lower()}")
        panels.setdefault(f"{task} {options}".strip(), {})[estimator] = own
    columns = min(len(panels), 2)
    lines = math.ceil(len(panels) / columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(5.5 * columns, 3.6 * lines), layout="constrained", squeeze=False
    )
    names = sorted({name for lines_of in panels.values() for name in lines_of})
    for ax in list(axes.flat)[len(panels) :]:
        ax.set_visible(False)
    for ax, (task, lines_of) in zip(axes.flat, panels.items(), strict=False):
        for estimator, own in lines_of.items():
            number = names.index(estimator)
            curves = [[float(value) for value in row["costs"].split()] for row in own]
            trials = range(min(map(len, curves)))
            at = [sorted(curve[k] for curve in curves) for k in trials]
            style = {
                "color": COLOURS[number % len(COLOURS)],
                "marker": MARKERS[number % len(MARKERS)],
                "markersize": 4,
            }
            label = f"{estimator}, {len(own)} seed{'s' if len(own) > 1 else ''}"
            ax.plot(trials, [statistics.median(values) for values in at], label=label, **style)
            if len(own) > 1:
                quartiles = [statistics.quantiles(values, n=4, method="inclusive") for values in at]
                low, high = [q[0] for q in quartiles], [q[2] for q in quartiles]
                ax.fill_between(trials, low, high, color=style["color"], alpha=0.15, linewidth=0)
        ax.set_title(task, fontsize=10)
        ax.set_xlabel("episode (the first with random actions)")
        ax.set_ylabel("cost of an episode")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Run what is missing, and print the table."""
    given, options = _split(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--csv", type=Path, required=True, help="one line a run; read first")
    parser.add_argument(
        "--configs", type=Path, nargs="+", default=[Path("configs/benchmark/swing_up_tp.yaml")]
    )
    parser.add_argument("--estimators", nargs="+", help="in place of the configuration's own")
    parser.add_argument("--seeds", type=int, nargs="*", default=list(range(10)))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--png", type=Path)
    arguments = parser.parse_args(given)
    there = {
        (row["config"], row["options"], row["estimator"], int(row["seed"]))
        for row in read(arguments.csv)
    }
    missing = [
        (config, estimator, seed)
        for seed in arguments.seeds
        for config in arguments.configs
        for estimator in arguments.estimators or [estimator_of(config)]
        if (config.stem, " ".join(options), estimator, seed) not in there
    ]
    failed = 0
    with ThreadPoolExecutor(arguments.jobs) as pool, tqdm(total=len(missing), disable=None) as bar:
        runs = {pool.submit(run, *each, options): each for each in missing}
        for done in as_completed(runs):
            bar.update()
            try:
                line = done.result()
            except RunFailed as error:
                failed += 1
                sys.stderr.write(f"{error}\n")
                continue
            add(line, arguments.csv)
    rows = read(arguments.csv)
    sys.stdout.write("\n".join(table(rows)) + "\n")
    if arguments.png is not None and rows:
        draw(rows, arguments.png)
    if failed:
        raise SystemExit(f"{failed} of {len(missing)} runs failed; they are not in the table.")


def _split(arguments: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Return what stands before and after the first ``--``."""
    at = list(arguments).index("--") if "--" in arguments else len(arguments)
    return arguments[:at], arguments[at + 1 :]


if __name__ == "__main__":
    main()
