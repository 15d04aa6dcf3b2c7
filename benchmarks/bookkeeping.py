"""Time and memory of a node that computes nothing (Fig. 7 of the Proppo paper, Appendix B.4).

    python -m benchmarks.bookkeeping                      # a table on the terminal
    python -m benchmarks.bookkeeping --csv b.csv --png b.png
    python -m benchmarks.bookkeeping --peer DIR           # beside a checkout of the prototype
    python -m benchmarks.bookkeeping --counts 10000000 --repetitions 2

What is measured, :mod:`proppo_agents.figures.bookkeeping` says.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from proppo_agents.figures.bookkeeping import FIELDS, Settings, draw, measure, our_systems
from proppo_agents.figures.experiment import Row, write_table
from proppo_agents.figures.style import save


def peer_systems() -> dict[str, Callable[[], Any]]:
    """Return functions that make the prototype's managers (it must be importable)."""
    from proppo.propagation_manager import PropagationManager as PeerManager
    from proppo.propagators import Propagator as PeerPropagator

    class PeerEmpty(PeerPropagator):  # type: ignore[misc,valid-type]
        """Calls both computations, which do nothing."""

        def forward_impl(self, x: Any, node: Any = None, **kwargs: Any) -> Any:
            """Keep nothing."""
            return {}

        def backward_impl(self, node: Any, message: Any) -> Any:
            """Send nothing."""
            return {}

    return {
        "prototype, no computation": lambda: PeerManager(PeerPropagator()),
        "prototype, empty computations": lambda: PeerManager(PeerEmpty()),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--counts", type=int, nargs="+", default=[10**k for k in range(1, 7)])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--png", type=Path)
    parser.add_argument("--peer", type=Path, help="a checkout of the prototype")
    arguments = parser.parse_args()
    if min(arguments.counts) < 1 or arguments.repetitions < 1:
        parser.error("counts and repetitions must be at least 1")
    torch.set_num_threads(arguments.threads)
    systems = our_systems()
    if arguments.peer is not None:
        sys.path.insert(0, str(arguments.peer))
        systems.update(peer_systems())
    sys.stdout.write(
        f"{'nodes':>9} {'system':<29} {'forward us':>10} {'low .. high':>16} {'backward us':>11} "
        f"{'low .. high':>16} {'both us':>8} {'bytes':>7} {'ratio':>6}\n"
    )
    rows: list[Row] = []
    for nodes in arguments.counts:
        with tqdm(
            total=arguments.repetitions, desc=f"{nodes} nodes", leave=False, disable=None
        ) as bar:
            found = measure(systems, nodes, arguments.repetitions, bar)
        times = {row["system"]: row["both_us"] for row in found}
        for row in found:
            # How many times faster than the prototype.
            peer = times.get(f"prototype, {row['system']}")
            ratio = "" if peer is None else f"{peer / row['both_us']:.1f}"
            held = "" if row["bytes"] is None else f"{row['bytes']:.0f}"
            sys.stdout.write(
                f"{nodes:9d} {row['system']:<29} {row['forward_us']:10.2f} "
                f"{row['forward_low']:6.2f} .. {row['forward_high']:6.2f} "
                f"{row['backward_us']:11.2f} "
                f"{row['backward_low']:6.2f} .. {row['backward_high']:6.2f} "
                f"{row['both_us']:8.2f} {held:>7} {ratio:>6}\n"
            )
        sys.stdout.flush()
        rows.extend(found)
    if arguments.csv is not None:
        write_table(arguments.csv, FIELDS, rows)
    if arguments.png is not None:
        note = Settings(tuple(arguments.counts), arguments.repetitions)
        save(draw(rows, str(note)), arguments.png)


if __name__ == "__main__":
    main()
