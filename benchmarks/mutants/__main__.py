"""Shows that the suite catches errors in the mathematics (:mod:`benchmarks.mutants.mutants`).

    python -m benchmarks.mutants                     # all; a table on the terminal
    python -m benchmarks.mutants --only tp.py ranks  # whose file or name contains one of these
    python -m benchmarks.mutants --jobs 2

The sources are copied, never written to. In the copy one error is made at a time, and the tests
chosen for it are run until the first that fails, which is the one that the table names. The tests
have to pass on the sources as they are, first. The exit status is 1 if a mutant survives, if its
tests cannot be run or exceed the time limit, or if its text is not found once in the source, which
has changed then: the mutant is to be brought up to date.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .copies import ROOT, Run, copy_to, finished
from .mutants import MUTANTS, Mutant

CAUGHT, PASSED = 1, 0  # pytest's exit statuses


class Stale(Exception):
    """A mutant's text is not in its source, or several times."""


def mutated(mutant: Mutant, root: Path) -> str:
    """Return the source of a mutant's file with the error.

    Raises:
        Stale: if it cannot be made.
    """
    path = root / "lightning_proppo" / mutant.file
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    found = text.count(mutant.old)
    if found != 1:
        raise Stale(
            f"{mutant.file}, {mutant.name}: the mutant no longer applies. Its text must occur once "
            f"in the source, and does so {found} times: {mutant.old!r}"
        )
    return text.replace(mutant.old, mutant.new)


def check_sources(copy: Path, mutants: Sequence[Mutant], limit: float) -> str | None:
    """Return what is wrong with the tests where there is no error, or None."""
    names = {name for mutant in mutants for name in mutant.tests}
    for chosen in (names - {"ranks"}, names & {"ranks"}):
        if chosen:
            (run,) = finished([Run(sorted(chosen), copy, 20 * limit)])
            if run.status != PASSED:
                return f"the tests must pass without an error in the sources; got:\n{run.told}"
    return None


def verdict(run: Run) -> tuple[bool, str]:
    """Return whether the tests caught an error, and which one did, or what went wrong."""
    if run.status == CAUGHT and run.first_failure is not None:
        return True, run.first_failure
    if run.status == PASSED:
        return False, f"SURVIVED {' '.join(run.tests)}"
    if run.status is None:
        return False, f"TIME LIMIT of {run.limit:.0f} s"
    return False, f"TESTS NOT RUN: {run.told.strip().splitlines()[-1:]}"


@contextmanager
def copies(number: int) -> Iterator[list[Path]]:
    """Copy the sources so many times, for as long as it takes."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        found = [Path(folder).resolve() / str(k) for k in range(number)]
        for copy in found:
            copy_to(copy)
        yield found


def judged(
    mutants: Sequence[Mutant], free: list[Path], limit: float
) -> Iterator[tuple[Mutant, Run]]:
    """Iterate over mutants whose tests have been run, several at a time, one in each copy."""
    waiting, running = list(mutants), dict[int, tuple[Mutant, Run, str]]()
    while waiting or running:
        while waiting and free:
            mutant, copy = waiting.pop(0), free.pop()
            path = copy / "lightning_proppo" / mutant.file
            before = path.read_text(encoding="utf-8")
            path.write_text(mutated(mutant, copy), encoding="utf-8")
            run = Run(mutant.tests, copy, limit)
            running[id(run)] = mutant, run, before
        done = next(finished([run for _, run, _ in running.values()]))
        mutant, run, before = running.pop(id(done))
        (run.copy / "lightning_proppo" / mutant.file).write_text(before, encoding="utf-8")
        free.append(run.copy)
        yield mutant, run


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", default=[""], help="parts of files or names")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds for each mutant")
    parser.add_argument("--unchecked", action="store_true", help="trust that the tests pass")
    arguments = parser.parse_args()
    chosen = [
        mutant
        for mutant in MUTANTS
        if any(part in f"{mutant.file} {mutant.name}" for part in arguments.only)
    ]
    if arguments.jobs < 1 or not chosen:
        parser.error("--jobs must be at least 1, and --only leave at least one mutant")
    stale = []
    for mutant in chosen:
        try:
            mutated(mutant, ROOT)
        except Stale as error:
            stale.append(f"{error}\n")
    if stale:
        sys.stderr.writelines(stale)
        return 1
    with copies(arguments.jobs) as folders:
        wrong = None if arguments.unchecked else check_sources(folders[0], chosen, arguments.limit)
        if wrong is not None:
            sys.stderr.write(f"{wrong}\n")
            return 1
        killed = 0
        sys.stdout.write(f"{'file':<30} {'error':<40} {'s':>5}  caught by\n")
        for mutant, run in judged(chosen, folders, arguments.limit):
            caught, by = verdict(run)
            killed += caught
            sys.stdout.write(f"{mutant.file:<30} {mutant.name:<40} {run.seconds:>5.1f}  {by}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{killed} of {len(chosen)} mutants are caught\n")
    return 0 if killed == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
