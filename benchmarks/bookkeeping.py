"""Time and memory of a node that computes nothing (Fig. 7 of the Proppo paper, Appendix B.4).

    python -m benchmarks.bookkeeping                      # a table on the terminal
    python -m benchmarks.bookkeeping --csv b.csv --png b.png
    python -m benchmarks.bookkeeping --peer DIR           # beside a checkout of the prototype
    python -m benchmarks.bookkeeping --counts 10000000 --repetitions 2

A rollout of empty nodes in a row, with "no computation" (a bare ``Propagator()``: what the paper
times) and with "empty computations" (a propagator whose own forward and backward computations
return nothing, so that both are called at every node). Time a node is the median over repetitions,
with the least and the greatest; short rollouts are repeated until they make 10,000 nodes, and what
takes turns in one repetition shares a busy machine's moods. Backward is ``manager.backward()``, so
it includes closing the rollout. Memory a node is what Python has allocated for it and not freed
when the rollout has been recorded (tracemalloc, in a run of its own that is not timed; None beyond
a million nodes, where tracing itself takes gigabytes).
"""

from __future__ import annotations

import argparse
import csv
import gc
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lightning_proppo import PropagationManager
from lightning_proppo.propagators import Propagator

FIELDS = [
    "nodes",
    "system",
    "repetitions",
    *(f"{way}_{what}" for way in ("forward", "backward", "both") for what in ("us", "low", "high")),
    "bytes",
]
AT_LEAST = 10_000
TRACED = 1_000_000


class Empty(Propagator):
    """Calls both computations, which do nothing."""

    def forward_impl(self, x: Any, node: Any = None) -> Any:
        """Keep nothing."""
        return {}

    def backward_impl(self, node: Any, message: Any) -> Any:
        """Send nothing."""
        return {}


def our_systems() -> dict[str, Callable[[], Any]]:
    """Return functions that make our managers."""
    return {
        "no computation": lambda: PropagationManager(Propagator()),
        "empty computations": lambda: PropagationManager(Empty()),
    }


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


def seconds(make: Callable[[], Any], nodes: int) -> tuple[float, float]:
    """Return the seconds that a node takes, forward and backward."""
    rollouts = max(1, AT_LEAST // nodes)
    forward = backward = 0.0
    for _ in range(rollouts):
        manager = make()
        if rollouts == 1:
            gc.collect()
        start = time.perf_counter()
        for _ in range(nodes):
            manager.forward(None)
        between = time.perf_counter()
        manager.backward()
        end = time.perf_counter()
        forward, backward = forward + between - start, backward + end - between
    return forward / rollouts / nodes, backward / rollouts / nodes


def memory(make: Callable[[], Any], nodes: int) -> float:
    """Return the bytes that a node holds when the rollout has been recorded."""
    manager = make()
    tracemalloc.start()
    for _ in range(nodes):
        manager.forward(None)
    gc.collect()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return held / nodes


def measure(
    systems: dict[str, Callable[[], Any]], nodes: int, repetitions: int
) -> list[dict[str, Any]]:
    """Time all systems in turn, and again, and summarize each."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in systems}
    for make in systems.values():  # warm up
        seconds(make, 100)
    for _ in tqdm(range(repetitions), desc=f"{nodes} nodes", leave=False, disable=None):
        for name, make in systems.items():
            times[name].append(seconds(make, nodes))
    rows = []
    for name, make in systems.items():
        row: dict[str, Any] = {"nodes": nodes, "system": name, "repetitions": repetitions}
        ways = (*zip(*times[name], strict=True), [sum(pair) for pair in times[name]])
        for way, values in zip(("forward", "backward", "both"), ways, strict=True):
            row[f"{way}_us"] = 1e6 * statistics.median(values)
            row[f"{way}_low"], row[f"{way}_high"] = 1e6 * min(values), 1e6 * max(values)
        row["bytes"] = memory(make, nodes) if nodes <= TRACED else None
        rows.append(row)
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the seconds of whole rollouts against the number of nodes, both on log scales."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4.5), sharex=True, sharey=True, layout="tight")
    for ax, way in zip(axes, ("forward", "backward", "both"), strict=True):
        for number, name in enumerate(dict.fromkeys(row["system"] for row in rows)):
            own = [row for row in rows if row["system"] == name]
            nodes = [row["nodes"] for row in own]
            middle, low, high = (
                [1e-6 * row["nodes"] * row[f"{way}_{what}"] for row in own]
                for what in ("us", "low", "high")
            )
            line = "--" if name.startswith("prototype") else "-"
            ax.plot(nodes, middle, line, color=f"C{number}", marker="o", markersize=3, label=name)
            ax.fill_between(nodes, low, high, color=f"C{number}", alpha=0.2, linewidth=0)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlabel("nodes")
        ax.set_title(way if way != "both" else "forward and backward")
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("seconds")
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


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
    rows: list[dict[str, Any]] = []
    for nodes in arguments.counts:
        found = measure(systems, nodes, arguments.repetitions)
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
        with arguments.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(rows)
    if arguments.png is not None:
        draw(rows, arguments.png)


if __name__ == "__main__":
    main()
