"""``lightning-proppo collect``: acts in an environment, and keeps what came of it."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_proppo.cli import CommandError
from proppo_agents.commands.options import positive
from proppo_agents.commands.sources import Source, of_checkpoint, of_config, of_environment
from proppo_agents.experience.episodes import in_words, step_limit
from proppo_agents.experience.files import EpisodeFileError, EpisodeFolder
from proppo_agents.experience.keeping import collect_and_keep


def main(args: Sequence[str]) -> int:
    """Collect episodes into a folder, with random actions or a checkpoint's policy.

    Args:
        args: what follows the subcommand's name.

    Returns:
        The exit status.

    Raises:
        CommandError: if there is nothing to act in, or no folder to write to.
    """
    options = _parser().parse_args(args)
    # Libraries greet on stdout, which belongs to the result.
    with contextlib.redirect_stdout(sys.stderr):
        source = _source(options)
    folder = EpisodeFolder(options.out)
    _refuse_another_environment(folder, source.environment)
    first = len(folder) if options.seed is None else options.seed
    about = {
        "environment": source.environment,
        "environment_options": source.options,
        "steps": source.steps,
    }
    for seed in range(first, first + options.episodes):
        before = len(folder)
        try:
            episode = collect_and_keep(source.env, source.policy, seed, folder, about)
        except OSError as error:
            raise CommandError(f"{options.out} cannot be written: {error.strerror}.") from error
        held = [] if len(folder) > before else ["which the folder held already"]
        end = in_words(episode.early_end(step_limit(source.env)), episode.success)
        outcome = [f"{len(episode.actions)} steps", f"return {episode.total:.4g}", *end, *held]
        sys.stdout.write(f"seed {seed}: {', '.join(outcome)}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{options.out} holds {len(folder)} episodes.\n")
    sys.stdout.flush()
    return 0


def _refuse_another_environment(folder: EpisodeFolder, environment: str) -> None:
    """Raise if the folder's last episode is of another environment: no model fits both.

    Raises:
        CommandError: for that, or if the episode cannot be read.
    """
    try:
        last = folder.last()
    except EpisodeFileError as error:
        raise CommandError(str(error)) from error
    there = None if last is None else last.about.get("environment")
    if there not in (None, environment):
        raise CommandError(
            f"{folder.path} holds episodes of {there}, which no model fits together with those of "
            f"{environment}; give another folder (--out)."
        )


def _source(options: argparse.Namespace) -> Source:
    if options.ckpt is not None:
        return of_checkpoint(options.ckpt)
    if options.config is not None:
        return of_config(options.config)
    return of_environment(options.environment, options.options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightning-proppo collect",
        description="Collect episodes into a folder, which fit takes by --model.data. Each is "
        "written as soon as it ends, or is broken off.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--ckpt", type=Path, metavar="PATH", help="act by the policy of this checkpoint"
    )
    what.add_argument(
        "--config",
        type=Path,
        metavar="PATH",
        help="random actions in the environment of this configuration of fit",
    )
    what.add_argument("--environment", metavar="ID", help="random actions in this environment")
    parser.add_argument(
        "--options",
        default="{}",
        metavar="JSON",
        help="of the environment given by its id (default: {})",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="where episodes are added"
    )
    parser.add_argument(
        "--episodes", type=positive, default=1, metavar="N", help="how many (default: 1)"
    )
    parser.add_argument(
        "--seed",
        type=int,
        metavar="S",
        help="of the first, the next ones count on (default: how many episodes the folder holds)",
    )
    return parser
