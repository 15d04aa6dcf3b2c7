"""Fig. 7: time and memory of a node that computes nothing (Appendix B.4).

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

import dataclasses
import gc
import math
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from tqdm import tqdm

from lightning_proppo import PropagationManager
from lightning_proppo.propagators import Propagator
from proppo_agents.figures.experiment import Claim, Experiment, Row
from proppo_agents.figures.memory import split_by_memory
from proppo_agents.figures.style import COLOURS, MARKERS, grid, new_figure

FIELDS = (
    "nodes",
    "system",
    "repetitions",
    *(f"{way}_{what}" for way in ("forward", "backward", "both") for what in ("us", "low", "high")),
    "bytes",
)
AT_LEAST = 10_000
TRACED = 1_000_000
BYTES = 500.0  # what a node is reckoned to hold when asking if a rollout fits into memory


@dataclass(frozen=True)
class Settings:
    """Of the figure.

    Attributes:
        counts: numbers of nodes.
        repetitions: N.
    """

    counts: tuple[int, ...] = tuple(10**k for k in range(1, 8))
    repetitions: int = 10

    def __str__(self) -> str:
        """Return them in words."""
        return f"medians of {self.repetitions} repetitions; bands: least and greatest"


class Empty(Propagator):
    """Calls both computations, which do nothing."""

    def forward_impl(self, x: Any, node: Any = None) -> Any:
        """Keep nothing."""
        return {}

    def backward_impl(self, node: Any, message: Any) -> Any:
        """Send nothing."""
        return {}


Systems = Mapping[str, Callable[[], Any]]


def our_systems() -> dict[str, Callable[[], Any]]:
    """Return functions that make our managers."""
    return {
        "no computation": lambda: PropagationManager(Propagator()),
        "empty computations": lambda: PropagationManager(Empty()),
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


def measure(systems: Systems, nodes: int, repetitions: int, bar: tqdm) -> list[Row]:
    """Time all systems in turn, and again, and summarize each.

    Args:
        systems: functions that make managers, by name.
        nodes: of a rollout.
        repetitions: of each.
        bar: moves on with every repetition.
    """
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in systems}
    for make in systems.values():  # warm up
        seconds(make, 100)
    for _ in range(repetitions):
        for name, make in systems.items():
            found[name].append(seconds(make, nodes))
        bar.update()
    rows = []
    for name, make in systems.items():
        row: Row = {"nodes": nodes, "system": name, "repetitions": repetitions}
        ways = (*zip(*found[name], strict=True), [sum(pair) for pair in found[name]])
        for way, values in zip(("forward", "backward", "both"), ways, strict=True):
            row[f"{way}_us"] = 1e6 * statistics.median(values)
            row[f"{way}_low"], row[f"{way}_high"] = 1e6 * min(values), 1e6 * max(values)
        row["bytes"] = memory(make, nodes) if nodes <= TRACED else None
        rows.append(row)
    return rows


def compute(settings: Settings, bar: tqdm) -> Iterator[Row]:
    """Yield each rollout's time and memory a node."""
    systems = our_systems()
    bar.reset(len(settings.counts) * settings.repetitions)
    for nodes in settings.counts:
        yield from measure(systems, nodes, settings.repetitions, bar)


def fit(settings: Settings) -> tuple[Settings, list[str]]:
    """Leave out the rollouts that this machine has no memory for."""
    fitting, left_out = split_by_memory({count: BYTES * count for count in settings.counts})
    told = [f"a rollout of {line}" for line in left_out]
    return dataclasses.replace(settings, counts=tuple(fitting)), told


def exponent(rows: list[Row], least: int = 1000) -> float:
    """Return the slope of log time against log nodes, from ``least`` nodes on.

    The shortest of the repetitions is taken: what else the machine does can only add to it.
    """
    long = [row for row in rows if row["nodes"] >= least]
    logs = [(math.log(row["nodes"]), math.log(row["nodes"] * row["both_low"])) for row in long]
    slope, _ = statistics.linear_regression(*zip(*logs, strict=True))
    return slope


def claims(rows: list[Row]) -> list[Claim]:
    """Check that time is proportional to the number of nodes, and how long one takes."""
    own = [row for row in rows if row["system"] == "no computation"]
    slope = exponent(own)
    most = own[-1]
    return [
        Claim(
            "the time increases linearly with the number of nodes",
            0.9 < slope < 1.1,
            f"as nodes to the power of {slope:.3f}, from 1000 nodes on",
        ),
        Claim(
            "a node takes roughly a microsecond",
            most["both_low"] < 3.0,
            f"{most['both_low']:.2f} µs forward and backward at {most['nodes']:,} nodes, median "
            f"{most['both_us']:.2f}",
        ),
    ]


def draw(rows: list[Row], note: str) -> Figure:
    """Draw the seconds of whole rollouts against the number of nodes, both on log scales."""
    figure = new_figure(12.0, 4.4, "Fig. 7: time of empty nodes", note)
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    for axes, way in zip(panels, ("forward", "backward", "both"), strict=True):
        for number, name in enumerate(dict.fromkeys(row["system"] for row in rows)):
            own = [row for row in rows if row["system"] == name]
            nodes = [row["nodes"] for row in own]
            middle, low, high = (
                [1e-6 * row["nodes"] * row[f"{way}_{what}"] for row in own]
                for what in ("us", "low", "high")
            )
            line = "--" if name.startswith("prototype") else "-"
            style = {"color": COLOURS[number], "marker": MARKERS[number], "linestyle": line}
            axes.plot(nodes, middle, markersize=5, label=name, **style)
            axes.fill_between(nodes, low, high, color=COLOURS[number], alpha=0.2, linewidth=0)
        own_nodes = sorted({row["nodes"] for row in rows})
        reference = [1e-6 * nodes for nodes in own_nodes]
        axes.plot(own_nodes, reference, ":", color="0.4", label="1 µs a node")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("nodes")
        axes.set_title(way if way != "both" else "forward and backward", fontsize=10)
        grid(axes)
    panels[0].set_ylabel("seconds for all nodes")
    panels[0].legend(fontsize=8)
    return figure


EXPERIMENT = Experiment(
    name="7",
    title="bookkeeping: time of empty nodes",
    fields=FIELDS,
    full=Settings(),
    quick=Settings(counts=(10, 100, 1000, 10_000, 100_000), repetitions=3),
    compute=compute,
    draw=draw,
    claims=claims,
    fit=fit,
)
