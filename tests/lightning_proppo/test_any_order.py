"""Managers in any order of use: whatever was done before, a gradient is the reference's.

A state machine draws sequences of calls on two managers: samples of several estimators in one
rollout, nested chains, costs, losses that are differentiated at once or after others, exceptions,
evaluations and copies in the middle. Rollouts are of any length and take turns.
"""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor
from torch.distributions import Independent, Normal

from lightning_proppo import PropagationError, PropagationManager
from lightning_proppo.propagators import ChainProp, LRProp, RPProp, TotalProp, TPXProp

from .rollout_reference import (
    START,
    Cost,
    Past,
    Sample,
    costs,
    deviation,
    mean,
    noises,
    reference,
)

DEFAULTS = {"RP": "attached", "LR": "LR", "TP": "TP", "TPX": "TPX"}
PROPAGATORS = {"RP": RPProp, "LR": LRProp, "TP": TotalProp, "TPX": TPXProp}
# The reference has no guard, which depends on all gradients before (test_guard.py).
OPTIONS: dict[str, dict[str, Any]] = {"TP": {"guard": False}, "TPX": {"guard": False}}
LOCS = ["matrix", "shift", "both", "plain", "skip", "again"]
COSTS = ["state", "priced", "looks back", "indifferent"]


class Failing(RPProp):
    """Draws a sample, and breaks the backward pass off."""

    def backward_impl(self, node: Any, message: Any) -> Any:
        raise ZeroDivisionError("in the backward pass")


@dataclass
class Recording:
    """A rollout that is being recorded, and what the reference needs to know of it."""

    steps: list[Sample | Cost] = field(default_factory=list)
    past: Past = field(default_factory=Past.new)
    calls: int = 0
    costs: int = 0
    with_graph: bool = False
    fails: bool = False


@dataclass
class Open:
    """A loss that has not been differentiated, and what its gradient is to be."""

    loss: Tensor
    expected: dict[str, Tensor]
    fails: bool
    which: int
    generation: int


managers = st.integers(0, 1)
seeds = st.integers(0, 2**31 - 1)
ways = st.sampled_from(list(PROPAGATORS))
samples = st.builds(
    Sample,
    ways=st.one_of(st.tuples(st.just("default")), st.tuples(ways)),
    loc=st.sampled_from(LOCS),
    scale=st.sampled_from(["fixed", "learnt"]),
    seed=seeds,
)
chains = st.builds(
    Sample,
    ways=st.lists(ways, min_size=2, max_size=3).map(tuple),
    loc=st.sampled_from(LOCS),
    scale=st.just("fixed"),
    seed=seeds,
)
# What is recorded, and in which of the forms that a call may have.
calls = st.tuples(
    st.one_of(samples, samples, chains, st.builds(Cost, st.sampled_from(COSTS))),
    st.integers(0, 2),
)
Steps = list[tuple[Sample | Cost, int]]
steps = st.lists(calls, max_size=5)


class AnyOrder(RuleBasedStateMachine):
    """Drives two managers; each rule checks what came of it."""

    @initialize(names=st.tuples(*[st.sampled_from(list(DEFAULTS))] * 2))
    def begin(self, names: tuple[str, str]) -> None:
        torch.manual_seed(7)
        self.parameters = {
            "matrix": torch.randn(2, 2, dtype=torch.float64).requires_grad_(),
            "shift": torch.randn(2, dtype=torch.float64).requires_grad_(),
            "log_scale": (0.3 * torch.randn(2, dtype=torch.float64) - 1).requires_grad_(),
        }
        self.names = names
        self.managers = [PropagationManager(name, **OPTIONS.get(name, {})) for name in names]
        for manager in self.managers:
            for name, kind in PROPAGATORS.items():
                manager.add_propagator(name, kind(**OPTIONS.get(name, {})))
        self.recordings = [Recording(), Recording()]
        self.generations = [0, 0]
        self.undifferentiated = [0, 0]
        self.open: list[Open] = []
        self.tapes: list[weakref.ref[Any]] = []

    # -- recording ---------------------------------------------------------------------------

    @rule(which=managers, steps=steps)
    def record(self, which: int, steps: Steps) -> None:
        for step, form in steps:
            if isinstance(step, Cost):
                self.append_loss(which, step, form)
            else:
                self.draw(which, step, form)

    def draw(self, which: int, step: Sample, form: int) -> None:
        """Draw a sample, and compare it with what it is to be."""
        recording, manager = self.recordings[which], self.managers[which]
        options: dict[str, Any] = {}
        if step.ways == ("default",):
            step = replace(step, ways=(DEFAULTS[self.names[which]],))
        elif len(step.ways) == 1:
            options = {"local_propagator": step.ways[0]}  # by its name
        else:
            parts = [PROPAGATORS[way](**OPTIONS.get(way, {})) for way in step.ways]
            nested = [parts[0], ChainProp(parts[1:])]
            options = {"local_propagator": ChainProp(nested if form else parts)}
        loc = mean(step.loc, recording.past, self.parameters)
        scale = deviation(step, self.parameters)
        noise = torch.stack(noises(step.seed, len(step.ways))).sum(0)
        torch.manual_seed(step.seed)
        if len(step.ways) == 1 and form < 2:
            dist = Normal(loc, scale)
            x = manager.sample(Independent(dist, 1) if form else dist, **options)
        else:
            dist_params = (torch.zeros_like(START), scale)
            x = manager.forward(loc, dist_class=Normal, dist_params=dist_params, **options)
        torch.testing.assert_close(x.detach(), (loc + scale * noise).detach())
        recording.past.locs.append(loc)
        recording.past.states.append(x)
        recording.steps.append(step)
        self.called(which)

    def append_loss(self, which: int, step: Cost, form: int) -> None:
        recording, manager = self.recordings[which], self.managers[which]
        past = recording.past
        found = costs(step.kind, past, self.parameters)
        if form < 2:
            manager.append_loss(found[:, None] if form else found)
        else:
            manager.append_loss(past, lossfunc=lambda p: costs(step.kind, p, self.parameters))
        recording.steps.append(step)
        recording.costs += 1
        recording.with_graph |= found.requires_grad
        self.called(which)

    def called(self, which: int) -> None:
        recording = self.recordings[which]
        if recording.calls == 0:
            self.tapes.append(weakref.ref(self.managers[which]._tape))
        recording.calls += 1

    # -- losses ------------------------------------------------------------------------------

    @rule(which=managers, steps=steps, kind=st.sampled_from(COSTS), appended=st.booleans())
    def close(self, which: int, steps: Steps, kind: str, appended: bool) -> None:
        """Make a loss of what has been recorded, here and before."""
        self.record(which, steps)
        recording, manager = self.recordings[which], self.managers[which]
        last = None if appended and recording.costs else kind
        if self.refused(which, last, manager.loss):
            return
        value = manager.loss(self.last_costs(which, last))
        expected_value, expected = reference(recording.steps, self.parameters)
        torch.testing.assert_close(value.detach(), expected_value)
        self.recordings[which] = Recording()
        if value.requires_grad:
            self.undifferentiated[which] += 1
            generation = self.generations[which]
            self.open.append(Open(value, expected, recording.fails, which, generation))
        else:
            assert not any(gradient.any() for gradient in expected.values())

    @rule(which=managers, steps=steps, kind=st.sampled_from([None, *COSTS]))
    def backward(self, which: int, steps: Steps, kind: str | None) -> None:
        """Differentiate by the manager's own method."""
        self.record(which, steps)
        recording, manager = self.recordings[which], self.managers[which]
        if self.refused(which, kind, manager.backward):
            return
        last = self.last_costs(which, kind)
        self.recordings[which] = Recording()
        if recording.fails:
            with pytest.raises(ZeroDivisionError):
                manager.backward(last)
            return
        manager.backward(last)
        if recording.costs or last is not None:
            self.compare(reference(recording.steps, self.parameters)[1])

    def last_costs(self, which: int, kind: str | None) -> Tensor | None:
        if kind is None:
            return None
        recording = self.recordings[which]
        recording.steps.append(Cost(kind))
        return costs(kind, recording.past, self.parameters)

    def refused(self, which: int, kind: str | None, call: Callable[[Any], Any]) -> bool:
        """Whether there is no rollout to be differentiated, so that the call must say so."""
        recording = self.recordings[which]
        found = None if kind is None else costs(kind, recording.past, self.parameters)
        if recording.calls == 0:
            match, found = "nothing was recorded", None
        elif not recording.costs and found is None:
            if call == self.managers[which].backward:
                return False  # it is for messages too, which need no costs
            match = "there are no costs"
        elif (
            self.names[which] == "LR"
            or recording.with_graph
            or (found is not None and found.requires_grad)
        ):
            return False
        else:
            match = "they have no graph"
        with pytest.raises(PropagationError, match=match):
            call(found)
        self.recordings[which] = Recording()
        return True

    # -- backward passes ---------------------------------------------------------------------

    @precondition(lambda self: self.open)
    @rule(
        data=st.data(),
        way=st.sampled_from(["backward", "grad", "twice", "scaled"]),
    )
    def differentiate(self, data: Any, way: str) -> None:
        index = data.draw(st.integers(0, len(self.open) - 1))
        each = self.open.pop(index)
        if each.fails:
            with pytest.raises(ZeroDivisionError):
                each.loss.backward()
            with pytest.raises(PropagationError, match="released when a backward pass"):
                each.loss.backward()
            return
        if each.generation == self.generations[each.which]:
            self.undifferentiated[each.which] -= 1
        if way == "scaled":
            (-2.5 * each.loss).backward()
            self.compare(each.expected, -2.5)
            return
        if way == "twice":
            each.loss.backward(retain_graph=True)
            self.compare(each.expected)
        if way == "grad":
            found = torch.autograd.grad(
                each.loss, list(self.parameters.values()), allow_unused=True
            )
            for parameter, gradient in zip(self.parameters.values(), found, strict=True):
                parameter.grad = gradient
        else:
            each.loss.backward()
        self.compare(each.expected)

    @precondition(lambda self: len(self.open) > 1 and not any(o.fails for o in self.open))
    @rule()
    def differentiate_the_sum_of_all(self) -> None:
        total = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        for factor, each in enumerate(self.open, 1):
            for name, gradient in each.expected.items():
                total[name] += factor * gradient
            if each.generation == self.generations[each.which]:
                self.undifferentiated[each.which] -= 1
        sum(factor * each.loss for factor, each in enumerate(self.open, 1)).backward()
        self.open.clear()
        self.compare(total)

    def compare(self, expected: dict[str, Tensor], factor: float = 1.0) -> None:
        """Compare what stands in the parameters with the reference's, and forget it."""
        for name, parameter in self.parameters.items():
            found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(
                found,
                factor * expected[name],
                rtol=1e-7,
                atol=1e-9,
                msg=lambda m, n=name: f"{n}: {m}",
            )
            parameter.grad = None

    # -- what must leave no trace ------------------------------------------------------------

    @rule(which=managers, wrong=st.integers(0, 5))
    def break_off(self, which: int, wrong: int) -> None:
        """An exception in a call ends the rollout, but no loss that has been made."""
        manager, past = self.managers[which], self.recordings[which].past
        x = past.states[-1]

        def interrupted(state: Tensor) -> Tensor:
            raise KeyboardInterrupt

        def in_a_context() -> None:
            with manager.rollout():
                manager.sample(Normal(START, 0.1))
                raise ZeroDivisionError

        acts: list[tuple[type[BaseException], Callable[[], Any]]] = [
            (ValueError, lambda: manager.append_loss(x)),
            (KeyboardInterrupt, lambda: manager.append_loss(x, lossfunc=interrupted)),
            (TypeError, lambda: manager.sample(x)),
            (TypeError, lambda: manager.sample(Normal(x, 0.1), dits=1)),
            (KeyError, lambda: manager.forward(x, local_propagator="none such")),
            (ZeroDivisionError, in_a_context),
        ]
        error, act = acts[wrong]
        with pytest.raises(error):
            act()
        self.recordings[which] = Recording()

    @rule(which=managers)
    def reset(self, which: int) -> None:
        self.managers[which].reset()
        self.recordings[which] = Recording()
        self.generations[which] += 1
        self.undifferentiated[which] = 0

    @rule(which=managers, seed=seeds)
    def a_node_that_fails(self, which: int, seed: int) -> None:
        """A sample whose backward computation raises."""
        torch.manual_seed(seed)
        self.managers[which].sample(Normal(START, 0.1), local_propagator=Failing())
        self.recordings[which].fails = True
        self.called(which)

    @rule(which=managers, inference=st.booleans(), breaks=st.booleans())
    def evaluate(self, which: int, inference: bool, breaks: bool) -> None:
        manager, past = self.managers[which], self.recordings[which].past
        with torch.inference_mode() if inference else torch.no_grad():
            x = manager.sample(Normal(mean("both", past, self.parameters), 0.1))
            assert not x.requires_grad
            manager.append_loss(x.square().sum(1))
            if breaks:
                with pytest.raises(ValueError, match="costs"):
                    manager.append_loss(x)
                return
            y = manager.sample(Normal(x, 0.1))
            value = manager.loss(y.square().sum(1))
        torch.testing.assert_close(value, (x.square() + y.square()).sum(1).mean())

    @rule(which=managers, how=st.sampled_from([copy.deepcopy, "pickle"]))
    def go_on_with_a_copy(self, which: int, how: Any) -> None:
        """A copy has no rollout, and what is open belongs to the original."""
        original = self.managers[which]
        twin = pickle.loads(pickle.dumps(original)) if how == "pickle" else how(original)
        assert original.recorded == self.recordings[which].calls
        self.managers[which] = twin
        self.recordings[which] = Recording()
        self.generations[which] += 1
        self.undifferentiated[which] = 0

    @precondition(lambda self: not self.open and not any(r.calls for r in self.recordings))
    @rule(seed=seeds)
    def update(self, seed: int) -> None:
        """A step of an optimizer, which writes into the parameters."""
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters.values():
                parameter.add_(0.1 * torch.randn_like(parameter))

    # -- always ------------------------------------------------------------------------------

    @invariant()
    def calls_and_losses_are_counted(self) -> None:
        if hasattr(self, "managers"):
            assert [m.recorded for m in self.managers] == [r.calls for r in self.recordings]
            assert [m.undifferentiated for m in self.managers] == self.undifferentiated

    def teardown(self) -> None:
        if not hasattr(self, "managers"):
            return
        for each in self.open:
            for keep in () if each.fails else (True, False):
                each.loss.backward(retain_graph=keep)
                self.compare(each.expected)
        self.open = each = []
        for manager in self.managers:
            manager.reset()
        self.recordings = []
        if any(tape() is not None for tape in self.tapes):
            gc.collect()
        assert not any(tape() for tape in self.tapes)


@pytest.mark.parametrize("scales", [("fixed", "learnt"), ("learnt", "fixed")])
@pytest.mark.parametrize("name", ["TP", "TPX", "LR"])
def test_samples_that_share_a_mean_are_weighed_each_by_what_it_reaches(
    name: str, scales: tuple[str, str]
) -> None:
    """One of them alone depends on a parameter; the other is compared at the sample before it."""
    torch.manual_seed(7)
    parameters = {
        name: torch.randn(shape, dtype=torch.float64).requires_grad_()
        for name, shape in (("matrix", (2, 2)), ("shift", (2,)), ("log_scale", (2,)))
    }
    way = (name,)
    steps = [
        Sample(way, "shift", "fixed", seed=1),
        Sample(way, "plain", scales[0], seed=2),
        Cost("state"),
        Sample(way, "again", scales[1], seed=3),
        Cost("looks back"),
    ]
    manager, past = PropagationManager(name, **OPTIONS.get(name, {})), Past.new()
    for step in steps:
        if isinstance(step, Cost):
            manager.append_loss(costs(step.kind, past, parameters))
            continue
        loc, scale = mean(step.loc, past, parameters), deviation(step, parameters)
        torch.manual_seed(step.seed)
        past.states.append(manager.sample(Normal(loc, scale)))
        past.locs.append(loc)
    manager.loss().backward()
    for name, expected in reference(steps, parameters)[1].items():
        found = parameters[name].grad
        found = torch.zeros_like(expected) if found is None else found
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(
    max_examples=50, stateful_step_count=25, suppress_health_check=[HealthCheck.too_slow]
)
