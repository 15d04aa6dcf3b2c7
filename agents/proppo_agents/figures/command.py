"""``lightning-proppo figures``: computes figures, draws them, and checks what is said of them."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lightning_proppo.cli import CommandError
from lightning_proppo.errors import did_you_mean
from proppo_agents.commands.options import positive
from proppo_agents.figures import (
    bifurcation,
    bookkeeping,
    derivative,
    landscape,
    multi_path,
    timing,
    variance,
)
from proppo_agents.figures.experiment import Experiment, write_table
from proppo_agents.figures.style import save

EXPERIMENTS: dict[str, Experiment[Any]] = {
    experiment.name: experiment
    for experiment in (
        timing.BATCH,
        timing.DIMENSION,
        bookkeeping.EXPERIMENT,
        bifurcation.EXPERIMENT,
        derivative.EXPERIMENT,
        landscape.EXPERIMENT,
        multi_path.EXPERIMENT,
        variance.EXPERIMENT,
    )
}


def main(args: Sequence[str]) -> int:
    """Compute the figures of the Proppo paper anew, as PNG and CSV.

    Args:
        args: what follows the subcommand's name.

    Returns:
        The exit status.

    Raises:
        CommandError: if the folder for the results cannot be made, or memory is short.
    """
    options = _parser().parse_args(args)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"the folder {options.out} cannot be made: {error.strerror}") from error
    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        for name in dict.fromkeys(options.figures or EXPERIMENTS):
            run(EXPERIMENTS[name], options.out, options.quick, options.seed)
    finally:
        torch.set_num_threads(threads)
    return 0


def run(experiment: Experiment[Any], folder: Path, quick: bool = False, seed: int = 0) -> None:
    """Compute one figure, write ``figure-NAME.png`` and ``.csv``, and report to stdout.

    Args:
        experiment: what is computed.
        folder: for the two files, which are named ``figure-NAME-quick`` if ``quick``.
        quick: take settings that need seconds.
        seed: of PyTorch's generator, and of settings that have one.

    Raises:
        CommandError: if this machine has no memory for any of the settings.
    """
    settings, left_out = experiment.fit(experiment.quick if quick else experiment.full)
    if hasattr(settings, "seed"):
        settings = dataclasses.replace(settings, seed=seed)
    torch.manual_seed(seed)
    start = time.perf_counter()
    # disable=None: no bar where stderr is not a terminal.
    with tqdm(desc=f"figure {experiment.name}", file=sys.stderr, disable=None) as bar:
        rows = list(experiment.compute(settings, bar))
    seconds = time.perf_counter() - start
    if not rows:
        raise CommandError(f"there is no memory for figure {experiment.name}: {left_out[0]}.")
    path = folder / f"figure-{experiment.name}{'-quick' if quick else ''}"
    table, picture = path.with_suffix(".csv"), path.with_suffix(".png")
    write_table(table, experiment.fields, rows)
    notes = [f"quick: {settings}" if quick else str(settings), *left_out]
    save(experiment.draw(rows, "; ".join(notes)), picture)
    lines = [f"figure {experiment.name}: {experiment.title} ({seconds:.1f} s)"]
    lines += [f"  {note}" for note in notes]
    claims = experiment.claims(rows)
    lines += [f"  {claim}" for claim in claims]
    if quick and not all(claim.holds for claim in claims):
        lines.append("  (of so few numbers a claim may fail by chance; compute the full figure)")
    lines += [f"  {file}" for file in (picture, table)]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name:<9} {each.title}" for name, each in EXPERIMENTS.items())
    parser = argparse.ArgumentParser(
        prog="lightning-proppo figures",
        description="Compute the figures of the Proppo paper anew, as PNG and CSV, and say whether "
        f"what the paper says of them holds.\n\nfigures:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "figures",
        nargs="*",
        type=_figure,
        metavar="FIGURE",
        help="which of them (default: all)",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="where the files are written"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="smaller settings, at most a minute each; files and pictures are labelled so",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="of the noise (default: 0)"
    )
    parser.add_argument(
        "--threads", type=positive, default=1, metavar="N", help="of PyTorch's (default: 1)"
    )
    return parser


def _figure(text: str) -> str:
    if text not in EXPERIMENTS:
        raise argparse.ArgumentTypeError(
            f"must be one of {', '.join(EXPERIMENTS)}; got {text!r}."
            f"{did_you_mean(text, EXPERIMENTS)}"
        )
    return text
