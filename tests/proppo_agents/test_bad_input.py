"""What agents and their parts are given wrongly: one exception says what came, and what to do.

As ``tests/lightning_proppo/test_bad_*.py`` have it of managers: nothing else failed on the way to
it, and the next correct calls give what they gave before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.wrappers import TimeLimit
from torch import Tensor

from lightning_proppo import PropagationManager
from proppo_agents import PILCO, GPDynamics, MLPPolicy, RBFPolicy
from proppo_agents.experience.episodes import Episode, collect_episode
from proppo_agents.parts import Spaces
from proppo_agents.regression import Ensemble, ExactGP, SparseGP
from proppo_agents.worlds import make_world

from ..errors import assert_refused

NAN, INF = float("nan"), float("inf")
SPACES = Spaces(observation_size=2, action_size=1, angles=(), encoded_angles=())
STEPS = 4


class Cart(gymnasium.Env[Any, Any]):
    """Ends its episodes after four steps.

    Args:
        observations: its space of observations; None: a Box of two numbers.
        actions: its space of actions; None: a Box of one number.
        seen: what is observed in the second step; None: nothing out of the way.
        reward: of the second step.
        failure: what the second step raises, if anything.
        cut_off: whether the second step ends the episode.
    """

    def __init__(
        self,
        observations: Any = None,
        actions: Any = None,
        seen: Any = None,
        reward: Any = 0.0,
        failure: Exception | None = None,
        cut_off: bool = False,
    ) -> None:
        box = gymnasium.spaces.Box
        self.observation_space = observations or box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = actions or box(-1.0, 1.0, (1,), np.float32)
        self.seen, self.reward = seen, reward
        self.failure, self.cut_off = failure, cut_off

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.count = 0
        return self.observation_space.sample() * 0, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.count += 1
        second = self.count == 2
        seen = self.observation_space.sample() * 0
        if second and self.seen is not None:
            seen = self.seen
        reward = self.reward if second else 1.0
        if second and self.failure is not None:
            raise self.failure
        return seen, reward, False, self.count == STEPS or (second and self.cut_off), {}


class OldReset(Cart):
    def reset(self, **options: Any) -> Any:  # type: ignore[override]
        return super().reset(**options)[0]


class OldestReset(Cart):
    def reset(self) -> Any:  # type: ignore[override]
        return super().reset()[0]


class OldStep(Cart):
    def step(self, action: Any) -> Any:
        seen, reward, terminated, truncated, info = super().step(action)
        return seen, reward, terminated or truncated, info


class Unpacking(Cart):
    def step(self, action: Any) -> Any:
        first, second = super().step(action)
        return first, second


def constant(action: Any) -> Callable[[Tensor], Any]:
    return lambda observation: action


def discrete(count: int) -> gymnasium.spaces.Discrete:
    return gymnasium.spaces.Discrete(count)


def episode(observations: int = 2, actions: int = 1) -> Episode:
    return Episode(
        observations=torch.randn(STEPS + 1, observations, dtype=torch.float64),
        actions=torch.randn(STEPS, actions, dtype=torch.float64),
        rewards=torch.zeros(STEPS, dtype=torch.float64),
        success=False,
    )


def fitted() -> GPDynamics:
    return GPDynamics(steps=1).build(SPACES).fit([episode(), episode()])


def gp() -> ExactGP:
    found = ExactGP(steps=1)
    found.fit(torch.randn(5, 2), torch.randn(5, 1))
    return found


@dataclass(frozen=True)
class Case:
    """One mistake.

    Attributes:
        name: what is wrong.
        error: the exception's type.
        words: parts of its message.
        act: makes the mistake.
    """

    name: str
    error: type[Exception]
    words: tuple[str, ...]
    act: Callable[[], Any]


ACTING = [
    Case(
        "a policy that returns NaN",
        ValueError,
        ("policy must return finite actions", "[nan]", "step 0", "gradient_clip_val"),
        lambda: collect_episode(Cart(), constant(torch.tensor([[NAN]]))),
    ),
    Case(
        "a policy that returns infinity",
        ValueError,
        ("finite actions", "[-inf]"),
        lambda: collect_episode(Cart(), constant(torch.tensor([[-INF]]))),
    ),
    Case(
        "a policy with an action too many",
        ValueError,
        ("policy must return actions of shape [1, 1] for Cart", "[1, 2]"),
        lambda: collect_episode(Cart(), constant(torch.zeros(1, 2))),
    ),
    Case(
        "a policy without particles",
        ValueError,
        ("of shape [1, 1]", "got [1]"),
        lambda: collect_episode(Cart(), constant(torch.zeros(1))),
    ),
    Case(
        "a policy that returns an array",
        TypeError,
        ("policy must return a tensor [1, A]", "ndarray"),
        lambda: collect_episode(Cart(), constant(np.zeros((1, 1)))),
    ),
    Case(
        "a policy that returns nothing",
        TypeError,
        ("policy must return a tensor", "NoneType"),
        lambda: collect_episode(Cart(), constant(None)),
    ),
    Case(
        "discrete observations",
        ValueError,
        ("observations of Cart must be a Box", "Discrete(3)", "FlattenObservation"),
        lambda: collect_episode(Cart(observations=discrete(3)), None),
    ),
    Case(
        "discrete actions",
        ValueError,
        ("actions of Cart must be a Box", "Discrete(2)", "must be continuous"),
        lambda: collect_episode(Cart(actions=discrete(2)), constant(torch.zeros(1, 1))),
    ),
    Case(
        "an environment in which NaN is observed",
        ValueError,
        ("observation after step 1 of Cart must be finite", "nan", "diverged"),
        lambda: collect_episode(Cart(seen=np.array([0.0, NAN])), None),
    ),
    Case(
        "an environment in which infinity is observed",
        ValueError,
        ("must be finite", "inf"),
        lambda: collect_episode(Cart(seen=np.array([INF, 0.0])), constant(torch.zeros(1, 1))),
    ),
    Case(
        "an environment whose reward is NaN",
        ValueError,
        ("reward of step 1 of Cart must be finite", "nan"),
        lambda: collect_episode(Cart(reward=NAN), None),
    ),
    Case(
        "an environment without a reward",
        ValueError,
        ("reward of step 1", "None"),
        lambda: collect_episode(Cart(reward=None), None),
    ),
    Case(
        "an environment whose reward has an axis",
        ValueError,
        ("reward of step 1 of Cart must be a single number", "shape [1]: [0.5]"),
        lambda: collect_episode(Cart(reward=np.full(1, 0.5)), None),
    ),
    Case(
        "an environment in which too much is observed",
        ValueError,
        ("observation after step 1 of Cart must be of shape [2]", "got one of shape [3]"),
        lambda: collect_episode(Cart(seen=np.zeros(3)), None),
    ),
    Case(
        "an environment in which a dict is observed",
        ValueError,
        ("observation after step 1 of Cart must be numbers", "{'x': 1.0}"),
        lambda: collect_episode(Cart(seen={"x": 1.0}), None),
    ),
    *[
        Case(
            f"an environment with {kind.__name__}{' in a wrapper' if steps else ''}",
            ValueError,
            (f"{words} of {kind.__name__} must", *more, "the old Gym's interface"),
            lambda kind=kind, steps=steps: collect_episode(
                TimeLimit(kind(), steps) if steps else kind(), constant(torch.zeros(1, 1))
            ),
        )
        for steps in (None, STEPS)
        for kind, words, *more in (
            (
                OldReset,
                "reset",
                "seed and options, and return (observation, info)",
                "got <class 'numpy.ndarray'>",
            ),
            (OldestReset, "reset", "take the keywords seed", "unexpected keyword argument 'seed'"),
            (OldStep, "step", "(observation, reward, terminated, truncated, info)", "4"),
        )
    ],
    Case(
        "an environment with discrete actions",
        ValueError,
        ("CartPole-v1", "Discrete(2)", "continuous actions"),
        lambda: make_world("CartPole-v1"),
    ),
]

PARTS = [
    Case(
        "a list for data",
        TypeError,
        ("inputs must be a tensor of real numbers", "list"),
        lambda: ExactGP(steps=1).fit([[1.0]], torch.zeros(1, 1)),  # type: ignore[arg-type]
    ),
    Case(
        "complex data",
        TypeError,
        ("outputs must be a tensor of real numbers", "torch.complex64"),
        lambda: ExactGP(steps=1).fit(torch.zeros(1, 1), torch.zeros(1, 1) + 0j),
    ),
    Case(
        "data without a column",
        ValueError,
        ("at least one input and output", "[3, 2] and [3, 0]"),
        lambda: SparseGP().fit(torch.zeros(3, 2), torch.zeros(3, 0)),
    ),
    Case(
        "no data",
        ValueError,
        ("N of at least 1", "[0, 2]"),
        lambda: Ensemble().fit(torch.zeros(0, 2), torch.zeros(0, 1)),
    ),
    Case(
        "a query of another size",
        ValueError,
        ("inputs must be [P, 2], as in the fit of ExactGP", "[4, 3]"),
        lambda: gp().predict(torch.zeros(4, 3)),
    ),
    Case(
        "a query of one axis",
        ValueError,
        ("inputs must be [P, 2]", "got [2]"),
        lambda: gp().predict_particles(torch.zeros(2)),
    ),
    Case(
        "a query of another precision",
        TypeError,
        ("inputs must be torch.float32", "got torch.float64", "module.double()"),
        lambda: gp().predict(torch.zeros(4, 2, dtype=torch.float64)),
    ),
    Case(
        "a model of no episodes",
        ValueError,
        ("episodes must hold at least one",),
        lambda: GPDynamics().build(SPACES).fit([]),
    ),
    Case(
        "a model of another environment's episodes",
        ValueError,
        ("sizes (2, 1)", "got (3, 1)"),
        lambda: GPDynamics().build(SPACES).fit([episode(3)]),
    ),
    Case(
        "a model that has not been fitted",
        RuntimeError,
        ("has not been fitted", "call fit"),
        lambda: GPDynamics().build(SPACES)(torch.zeros(2, 2), torch.zeros(2, 1)),
    ),
    Case(
        "a model asked for more states than actions",
        ValueError,
        ("with the same P", "[3, 2] and [2, 1]"),
        lambda: fitted()(torch.zeros(3, 2), torch.zeros(2, 1)),
    ),
    *[
        Case(
            f"an observation of another size for a {policy.__name__}",
            ValueError,
            ("observation must be [P, 2]", "built for", "[5, 3]"),
            lambda policy=policy: policy().build(SPACES)(torch.zeros(5, 3)),
        )
        for policy in (RBFPolicy, MLPPolicy)
    ],
    *[
        Case(
            f"{value!r} for {name}",
            error,
            (name, words, repr(value)),
            lambda name=name, value=value: PILCO("Pendulum-v1", **{name: value}),
        )
        for name, value, error, words in (
            ("particles", 1, ValueError, "at least 2"),
            ("particles", NAN, TypeError, "whole number"),
            ("particles", True, TypeError, "whole number"),
            ("steps", 1.5, TypeError, "whole number"),
            ("candidates", "5", TypeError, "whole number"),
            ("horizon", NAN, TypeError, "whole number"),
            ("episode_steps", 0, ValueError, "at least 1"),
            ("learning_rate", "fast", TypeError, "must be a number"),
            ("learning_rate", NAN, ValueError, "positive"),
            ("final_learning_rate", INF, ValueError, "finite"),
            ("patience", 0, ValueError, "at least 1"),
        )
    ],
    *[
        Case(
            f"{value!r} steps of a fit",
            error,
            ("steps", repr(value)),
            lambda value=value: ExactGP(steps=value),
        )
        for value, error in ((-1, ValueError), (2.5, TypeError), ("3", TypeError))
    ],
]


def good() -> list[Tensor]:
    """What the calls give that follow."""
    torch.manual_seed(0)
    found = collect_episode(Cart(), constant(torch.full((1, 1), 0.5)), seed=1)
    mean, variance = gp().predict(torch.zeros(4, 2))
    return [found.observations, found.actions, mean, variance, *fitted().parameters()]


@pytest.mark.parametrize("case", [*ACTING, *PARTS], ids=lambda case: case.name)
def test_one_exception_says_what_came_and_the_next_call_works(case: Case) -> None:
    expected = good()
    assert_refused(case.error, case.words, case.act)
    assert all(torch.equal(a, b) for a, b in zip(good(), expected, strict=True))


def test_an_environments_own_error_is_left_as_it_is() -> None:
    with pytest.raises(ValueError, match=r"^too many values to unpack \(expected 2"):
        collect_episode(Unpacking(), None)


def test_an_episode_that_a_policy_spoils_is_kept_up_to_there() -> None:
    kept: list[Episode] = []
    actions = iter([0.1, 0.2, NAN])
    with pytest.raises(ValueError, match=r"finite actions; got .*at step 2"):
        collect_episode(
            Cart(), lambda observation: torch.tensor([[next(actions)]]), broken_off=kept.append
        )
    assert [float(a) for a in kept[0].actions] == pytest.approx([0.1, 0.2])
    assert kept[0].observations.shape == (3, 2)
    assert bool(kept[0].observations.isfinite().all())


def test_what_is_observed_wrongly_is_not_kept() -> None:
    kept: list[Episode] = []
    with pytest.raises(ValueError, match="must be finite"):
        collect_episode(Cart(seen=np.array([NAN, 0.0])), None, broken_off=kept.append)
    assert kept[0].observations.shape == (2, 2)
    assert bool(kept[0].observations.isfinite().all())


def test_random_actions_may_be_of_any_space() -> None:
    found = collect_episode(Cart(actions=discrete(3)), None, seed=0)
    assert found.actions.shape == (STEPS,)


# -- an agent in such an environment -------------------------------------------------------------


@pytest.fixture
def registered() -> Iterator[None]:
    gymnasium.register("Cart-v0", Cart, max_episode_steps=STEPS, disable_env_checker=True)
    yield
    gymnasium.registry.pop("Cart-v0")


def agent(**options: Any) -> PILCO:
    module = PILCO(
        "Cart-v0",
        options,
        spread=(1.0, 1.0),
        particles=8,
        steps=2,
        candidates=2,
        dynamics=GPDynamics(steps=3),
        policy=RBFPolicy(basis_functions=5),
    )
    module.manager = PropagationManager("TP")
    return module


def learn(module: PILCO) -> None:
    """Act, fit a model, and take a gradient of its prediction."""
    module.collect(None)
    module.refit()
    module.predict()[0].backward()


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("failure", RuntimeError, ("the motor is too hot",)),
        ("seen", ValueError, ("must be finite", "nan")),
    ],
)
def test_an_agent_goes_on_after_an_episode_that_failed(
    fault: str, error: type[Exception], words: tuple[str, ...]
) -> None:
    wrong = RuntimeError("the motor is too hot") if fault == "failure" else np.array([NAN, 0.0])
    module = agent(**{fault: wrong})
    assert_refused(error, words, lambda: learn(module))
    setattr(module.env.unwrapped, fault, None)
    module.episodes.clear()
    learn(module)


@pytest.mark.usefixtures("registered")
def test_an_episode_that_is_cut_off_is_a_short_one() -> None:
    module = agent(cut_off=True)
    learn(module)
    assert len(module.episodes[0].actions) == 2
    assert all(bool(p.grad.isfinite().all()) for p in module.policy.parameters())
