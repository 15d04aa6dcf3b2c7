"""``lightning-proppo render``: films an episode with a checkpoint's policy."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

import gymnasium

from lightning_proppo.cli import CommandError
from proppo_agents.commands.sources import of_checkpoint
from proppo_agents.experience.episodes import in_words, step_limit
from proppo_agents.watching.films import FilmError, can_write, film_episode, rendered


def main(args: Sequence[str]) -> int:
    """Film an episode with the policy of a checkpoint, as mp4, GIF or PNGs.

    Args:
        args: what follows the subcommand's name.

    Returns:
        The exit status.

    Raises:
        CommandError: if the checkpoint cannot be used, or the film not be made or written.
    """
    options = _parser().parse_args(args)
    # Libraries greet on stdout, which belongs to the result.
    with contextlib.redirect_stdout(sys.stderr):
        try:
            can_write(options.out.suffix)
            source = of_checkpoint(options.ckpt)
            if source.policy is None:
                raise CommandError(f"{options.ckpt} holds no policy: it has no method act.")
            with rendered(source.env) as env:
                film = film_episode(env, source.policy, options.seed, options.out)
        except (FilmError, gymnasium.error.DependencyNotInstalled) as error:
            raise CommandError(str(error)) from error
        except OSError as error:
            raise CommandError(f"{options.out} cannot be written: {error.strerror}.") from error
    episode = film.episode
    outcome = [
        f"{len(film.frames)} frames",
        f"{len(episode.actions) / film.frames_per_second:.4g} s",
        f"return {episode.total:.4g}",
        *in_words(episode.early_end(step_limit(source.env)), episode.success),
    ]
    sys.stdout.write(f"{options.out}: {', '.join(outcome)}\n")
    sys.stdout.flush()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightning-proppo render",
        description="Film an episode with the policy of a checkpoint.",
    )
    parser.add_argument("--ckpt", type=Path, required=True, metavar="PATH", help="the checkpoint")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="PATH",
        help="FILE.mp4 (needs MoviePy), FILE.gif, or a folder for a PNG of each frame",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="of the episode's noise (default: 0)"
    )
    return parser
