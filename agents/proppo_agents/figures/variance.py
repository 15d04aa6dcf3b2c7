"""The main text's figure: variance of the gradient of the chaotic network against beta."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from lightning_proppo import PropagationManager
from lightning_proppo.propagators import BIWProp, LRProp, Propagator, RPProp, TotalProp, TPXProp
from proppo_agents.figures.experiment import Claim, Experiment, Row
from proppo_agents.figures.repetitions import measure
from proppo_agents.figures.style import grid, line_style, new_figure
from proppo_envs import ChaoticRNN

FIELDS = (
    "beta",
    "estimator",
    "mean",
    "standard_error",
    "variance",
    "low",
    "high",
    "milliseconds",
    "variance_times_seconds",
)
ESTIMATORS: dict[str, Callable[[], str | Propagator]] = {
    "RP": lambda: "RP",
    "LR": lambda: "LR",
    "TP": lambda: "TP",
    "TPX": lambda: "TPX",
    "TP, covariance": lambda: TotalProp(weighting="covariance"),
    "TP, cross-fitted": lambda: TotalProp(weighting="cross-fitted"),
    "BIW": lambda: "BIW",
    "BIW, groups": lambda: BIWProp(group_size=20),
    "LR+mesh": lambda: BIWProp(share="mesh", group_size=20),
    "TP+BIW, groups": lambda: TotalProp(share="likelihoods", group_size=20),
    "TP+mesh": lambda: "TP+MESH",
    "TPX+mesh": lambda: TPXProp(share="mesh", group_size=20),
    "RP, quasi": lambda: RPProp(detach=False, noise="quasi-random"),
    "LR, quasi": lambda: LRProp(noise="quasi-random"),
    "TP, quasi": lambda: TotalProp(noise="quasi-random"),
    "TP+mesh, quasi": lambda: TotalProp(share="mesh", group_size=20, noise="quasi-random"),
    "GR": lambda: "GR",
    "GS": lambda: "GS",
    "TP+GS": lambda: "TP+GS",
}
PAPERS = ("RP", "LR", "TP")
# What is drawn: beyond it RP's values are of rare events, and would press all others together.
SHOWN = 1e3
# Betas without and with chaos, and what counts as an explosion of the variance from one to the
# other: LR's and TP's grow too, by less.
CALM, CHAOS = 2.0, 2.5
EXPLOSION = 1e4


@dataclass(frozen=True)
class Settings:
    """Of the figure.

    Attributes:
        betas: at which it is measured.
        estimators: names in ``ESTIMATORS``.
        repetitions: N, independent gradients of each.
        particles: P.
    """

    betas: tuple[float, ...] = (1.0, 1.5, 1.75, 2.0, 2.25, 2.4, 2.5, 2.6, 2.75, 3.0, 3.5, 4.0)
    estimators: tuple[str, ...] = (*PAPERS, "TP+mesh")
    repetitions: int = 100
    particles: int = 1000

    def __str__(self) -> str:
        """Return them in words."""
        return (
            f"batch {self.particles}, horizon {ChaoticRNN().horizon}, {self.repetitions} "
            "independent repetitions; bands: 95 % intervals (bootstrap)"
        )


def our_gradient(name: str, beta: float, particles: int) -> Callable[[], float]:
    """Return a function that computes one gradient with our manager."""
    system = ChaoticRNN()
    parameter = torch.tensor([beta], requires_grad=True)
    manager = PropagationManager(ESTIMATORS[name]())

    def gradient() -> float:
        x = system.initial_state(particles)
        for _ in range(system.horizon):
            x = manager.sample(system.transition(x, parameter))
        manager.append_loss(x, lossfunc=system.cost)
        return torch.autograd.grad(manager.loss(), parameter)[0].item()

    return gradient


def compute(settings: Settings, bar: tqdm) -> Iterator[Row]:
    """Yield each beta's and estimator's mean and variance."""
    bar.reset(len(settings.betas) * settings.repetitions)
    for beta in settings.betas:
        gradients = {
            name: our_gradient(name, beta, settings.particles) for name in settings.estimators
        }
        for name, found in measure(gradients, settings.repetitions, bar).items():
            yield {"beta": beta, "estimator": name, **found}


def claims(rows: list[Row]) -> list[Claim]:
    """Check RP's explosion, LR's robustness and TP's place among them."""
    by_beta: dict[float, dict[str, Row]] = {}
    for row in rows:
        if row["estimator"] in PAPERS:
            by_beta.setdefault(row["beta"], {})[row["estimator"]] = row
    calm = [found for beta, found in by_beta.items() if beta <= CALM]
    chaotic = [found for beta, found in by_beta.items() if beta > CHAOS]
    rp_calm, lr_calm = (max(found[name]["variance"] for found in calm) for name in ("RP", "LR"))
    rp_chaotic = min(found["RP"]["variance"] for found in chaotic)
    over_lr = min(found["RP"]["variance"] / found["LR"]["variance"] for found in chaotic)
    lr_most = max(found["LR"]["variance"] for found in by_beta.values())
    best = {
        beta: min((found["RP"], found["LR"]), key=lambda row: row["variance"])
        for beta, found in by_beta.items()
    }
    above = [beta for beta, found in by_beta.items() if found["TP"]["low"] > best[beta]["high"]]
    gains = {
        beta: best[beta]["variance"] / found["TP"]["variance"] for beta, found in by_beta.items()
    }
    # RP's estimate may hang on one repetition of a hundred: what counts is the interval's end.
    sure = {
        beta: min(found["RP"]["low"], found["LR"]["low"]) / found["TP"]["high"]
        for beta, found in by_beta.items()
    }
    top = max(sure, key=lambda beta: sure[beta])
    listed = ", ".join(f"{gain:.2g} at {beta}" for beta, gain in gains.items())
    return [
        Claim(
            "RP's variance explodes past beta 2.5",
            rp_chaotic > EXPLOSION * rp_calm and over_lr > EXPLOSION,
            f"at most {rp_calm:.2g} up to beta {CALM}; beyond {CHAOS} at least {rp_chaotic:.2g}, "
            f"and at least {over_lr:.2g} times LR's",
        ),
        Claim(
            "LR is robust to chaos",
            lr_most < EXPLOSION * lr_calm,
            f"at most {lr_calm:.2g} up to beta {CALM}, {lr_most:.2g} anywhere",
        ),
        Claim(
            "TP is at or under the better of RP and LR at every beta, to within 95 % intervals",
            not above,
            f"above at {above}" if above else f"times lower: {listed}",
        ),
        Claim(
            "TP's variance is 100 times lower than that of the better of RP and LR at some beta",
            sure[top] >= 100,
            f"by the intervals' ends at least {sure[top]:.2g} times, at beta {top}, and nowhere "
            "surely more",
        ),
    ]


def draw(rows: list[Row], note: str) -> Figure:
    """Draw variance, and variance times time, against beta, on a log scale."""
    figure = new_figure(
        10.5, 4.8, "Gradient of the chaotic recurrent network with respect to beta", note
    )
    left, right = figure.subplots(1, 2, sharex=True)
    # Benchmarks add rows that were computed in another way, without a time.
    rows = [row for row in rows if not math.isnan(row["milliseconds"])]
    for number, name in enumerate(dict.fromkeys(row["estimator"] for row in rows)):
        own = [row for row in rows if row["estimator"] == name]
        style = line_style(name, number)
        betas = [row["beta"] for row in own]
        left.plot(betas, [row["variance"] for row in own], **style)
        low, high = ([row[bound] for row in own] for bound in ("low", "high"))
        left.fill_between(betas, low, high, color=style["color"], alpha=0.2, linewidth=0)
        right.plot(betas, [row["variance_times_seconds"] for row in own], **style)
    shown = [row for row in rows if row["variance"] < SHOWN]
    for axes, what, label in (
        (left, "variance", "variance of the gradient"),
        (right, "variance_times_seconds", "variance × seconds for one gradient"),
    ):
        axes.set_yscale("log")
        axes.set_xlabel("inverse temperature beta")
        axes.set_ylabel(label)
        least, most = (bound(row[what] for row in shown) for bound in (min, max))
        axes.set_ylim(least / 3, max(most, 1.0) * 30)
        axes.axvline(CHAOS, color="0.4", linestyle=":", linewidth=1.0)
        grid(axes)
    left.set_title("RP goes on beyond the top", fontsize=9)
    right.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


EXPERIMENT = Experiment(
    name="variance",
    title="variance of the gradient against beta",
    fields=FIELDS,
    full=Settings(),
    quick=Settings(betas=(1.0, 2.0, 2.5, 3.0, 3.5), repetitions=40, particles=200),
    compute=compute,
    draw=draw,
    claims=claims,
)
