"""How often torchrl's PILCO learns the swing-up, for the table of ``benchmarks.pilco``.

    python -m benchmarks.pilco_torchrl --csv pilco.csv --epochs 5 --seeds 0 1 2
    python -m benchmarks.pilco_torchrl --csv pilco.csv --settings example

It needs torchrl 0.14 (``pip install 'torchrl[pilco]==0.14.*'``). Its Gaussian processes,
controller, cost and imagined environment are run as in its example of PILCO,
``sota-implementations/pilco``: an epoch is a model of all episodes, gradient steps on the predicted
cost, propagated by analytic moment matching (Deisenroth and Rasmussen 2011), and an episode of the
new controller. Episodes are of the same environment, as many and as long as our agent's, the first
one with random actions, and success is the environment's verdict. Lines have the fields of
``benchmarks.pilco``; costs are the environment's.

``--settings example`` takes what the example's configuration says, with the environment's own start
and as many steps as ours. ``--settings tuned`` takes what our agent does, as far as there is such a
thing in it: 50 basis functions spread over the space, the best of 50 such controllers to start
from, and again after an episode that brought nothing; learning rate, its schedule and clipping; a
cost of the pole's angle and the cart's place alone, of the unwrapped angle (the cost of
pipps_demo). And it repairs the model's variances: torchrl 0.14 reads hyperparameters from models
that botorch, from 0.12 on, fits to standardized outputs, and takes them for those of the outputs
themselves, which makes predicted variances too large by one over the outputs' variance. After an
episode of random actions that is a hundred times for the cart's place.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.pilco import EPISODES, add, read, table
from proppo_agents.experience.episodes import Episode, collect_episode

ENVIRONMENT = "proppo_envs:CartPoleSwingUp-v0"
SECONDS = 2.5
SETTINGS: dict[str, dict[str, Any]] = {
    "example": {
        "basis_functions": 10,
        "learning_rate": 5e-3,
        "final_learning_rate": 1.0,
        "clip": None,
        "weights": (1.0, 1.0, 1.0, 1.0),
        "spread": None,
        "candidates": 1,
        "gives_up": False,
        "repair": False,
    },
    "tuned": {
        "basis_functions": 50,
        "learning_rate": 0.03,
        "final_learning_rate": 0.3,
        "clip": 0.1,
        "weights": (1.0, 0.0, 1.0, 0.0),
        "spread": (1.0, 2.0, 3.0, 5.0),
        "candidates": 50,
        "gives_up": True,
        "repair": True,
    },
}
ACTION = [("action", "mean"), ("action", "var"), ("action", "cross_covariance")]
BELIEF = [("observation", "mean"), ("observation", "var")]


def fit_model(episodes: Sequence[Episode], repair: bool) -> Any:
    """Return torchrl's world model of the episodes, in float64."""
    from tensordict import TensorDict
    from torchrl.modules import GPWorldModel

    before = torch.cat([episode.observations[:-1] for episode in episodes])
    after = torch.cat([episode.observations[1:] for episode in episodes])
    action = torch.cat([episode.actions for episode in episodes])
    model = GPWorldModel(before.shape[1], action.shape[1]).double()
    data = {"observation": before, "action": action, ("next", "observation"): after}
    model.fit(TensorDict(data, [len(before)]))
    if repair:
        to_units_of(model, after - before)
    return model.eval()


def to_units_of(model: Any, outputs: Tensor) -> None:
    """Give hyperparameters of standardized outputs [N, D] the outputs' own units.

    The mean prediction stays: the kernel is multiplied by what its weights are divided by.
    """
    variance = outputs.var(0)
    model.alpha_sq = model.alpha_sq * variance[:, None]
    model.sigma_sq_eps = model.sigma_sq_eps * variance
    model._cached_inv_K_noisy = model._cached_inv_K_noisy / variance[:, None, None]
    model._cached_beta = model._cached_beta / variance[:, None]


def make_controller(settings: dict[str, Any], size: int) -> Any:
    """Return one of torchrl's controllers of observations [P, D], in float64."""
    from torchrl.modules import RBFController

    count = settings["basis_functions"]
    controller = RBFController(size, 1, max_action=1.0, n_basis=count).double()
    if settings["spread"] is not None:
        spread = torch.tensor(settings["spread"], dtype=torch.float64)
        with torch.no_grad():
            controller.centers.copy_(torch.randn_like(controller.centers) * spread)
            controller.lengthscales.copy_(spread)
            controller.weights.copy_(0.5 * torch.randn_like(controller.weights))
    return controller


def predictor(
    model: Any, start: tuple[Tensor, Tensor], horizon: int, weights: Sequence[float]
) -> Callable[[Any], Tensor]:
    """Return a function of a controller: the mean cost [] of the imagined episode."""
    from tensordict import TensorDict
    from tensordict.nn import TensorDictModule
    from torchrl.envs import GymEnv
    from torchrl.envs.model_based import ImaginedEnv
    from torchrl.objectives import ExponentialQuadraticCost

    imagined = ImaginedEnv(world_model_module=model, base_env=GymEnv(ENVIRONMENT))
    precision = torch.diag(torch.tensor(weights, dtype=torch.float64))
    cost = ExponentialQuadraticCost(weights=precision, reduction="none")
    first = TensorDict({BELIEF[0]: start[0][None], BELIEF[1]: start[1][None]}, [1])

    def predict(controller: Any) -> Tensor:
        policy = TensorDictModule(controller, in_keys=BELIEF, out_keys=ACTION)
        rollout = imagined.rollout(horizon, policy, tensordict=first.clone())
        return cost(rollout["next"])["loss_cost"].mean()

    return predict


def start_search(predict: Callable[[Any], Tensor], settings: dict[str, Any], size: int) -> Any:
    """Return the model's favourite of some random controllers."""
    drawn = [make_controller(settings, size) for _ in range(settings["candidates"])]
    if len(drawn) == 1:
        return drawn[0]
    with torch.no_grad():
        costs = [float(predict(controller)) for controller in drawn]
    return drawn[min(range(len(drawn)), key=lambda k: costs[k])]


def improve(
    controller: Any,
    predict: Callable[[Any], Tensor],
    steps: int,
    settings: dict[str, Any],
    bar: tqdm[Any],
) -> list[float]:
    """Take gradient steps on the predicted cost, and return the costs."""
    optimizer = torch.optim.Adam(controller.parameters(), lr=settings["learning_rate"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, steps, settings["final_learning_rate"] * settings["learning_rate"]
    )
    costs = []
    for _ in range(steps):
        loss = predict(controller)
        optimizer.zero_grad()
        loss.backward()
        largest = math.inf if settings["clip"] is None else settings["clip"]
        torch.nn.utils.clip_grad_norm_(controller.parameters(), largest, error_if_nonfinite=True)
        optimizer.step()
        schedule.step()
        costs.append(float(loss))
        bar.update()
    return costs


def policy_of(controller: Any) -> Callable[[Tensor], Tensor]:
    """Return the controller's actions [P, A] at observations [P, D], which are certain."""

    def act(observation: Tensor) -> Tensor:
        mean = observation.double()
        size = mean.shape[-1]
        return controller(mean, mean.new_zeros(*mean.shape, size))[0]

    return act


def start_of(env: gymnasium.Env[Any, Any]) -> tuple[Tensor, Tensor]:
    """Return mean [D] and covariance [D, D] of the first observation of an episode."""
    own: Any = env.unwrapped
    variance = torch.zeros(4, dtype=torch.float64)
    for std in (own.initial_std, own.observation_noise_std):
        variance = variance + torch.as_tensor(std, dtype=torch.float64).square()
    return torch.tensor([0.0, 0.0, math.pi, 0.0], dtype=torch.float64), torch.diag(variance)


def run(arguments: argparse.Namespace, seed: int, bar: tqdm[Any]) -> dict[str, Any]:
    """Train and evaluate one controller, and return its line."""
    settings = SETTINGS[arguments.settings]
    torch.manual_seed(seed)
    began = time.perf_counter()
    env = gymnasium.make(ENVIRONMENT)
    start = start_of(env)

    def collect(policy: Callable[[Tensor], Tensor] | None) -> Episode:
        return collect_episode(env, policy, int(torch.randint(2**31 - 1, ())))

    episodes = [collect(None)]
    horizon = len(episodes[0].actions)
    controller: Any = None
    for _ in range(arguments.epochs):
        model = fit_model(episodes, settings["repair"])
        predict = predictor(model, start, horizon, settings["weights"])
        if controller is None:
            controller = start_search(predict, settings, len(start[0]))
        costs = improve(controller, predict, arguments.steps, settings, bar)
        best = max(episode.total for episode in episodes)
        episodes.append(collect(policy_of(controller)))
        done = episodes[-1]
        bar.write(
            f"seed {seed}, {horizon * (len(episodes) - 1)} points: predicted cost {costs[0]:.3f} "
            f"to {costs[-1]:.3f}, real return {done.total:.3g}, success {done.success}",
            file=sys.stderr,
        )
        last = controller
        if settings["gives_up"] and not done.success and done.total <= best:
            controller = None
    wall = time.perf_counter() - began
    evaluated = [collect_episode(env, policy_of(last), 1000 + k) for k in range(EPISODES)]
    first = next((k for k, episode in enumerate(episodes) if episode.success), None)
    return {
        "config": f"torchrl_{arguments.settings}",
        "options": options_of(arguments),
        "estimator": "MM",
        "seed": seed,
        "trials": len(episodes),
        "first_success": "" if first is None else first,
        "experience_seconds": "" if first is None else (first + 1) * SECONDS,
        "successes": sum(episode.success for episode in episodes),
        "final_successes": sum(episode.success for episode in evaluated),
        "final_return": statistics.mean(episode.total for episode in evaluated),
        "wall_seconds": wall,
        "costs": " ".join(f"{len(e.rewards) - e.total:.4g}" for e in episodes),
    }


def options_of(arguments: argparse.Namespace) -> str:
    """Return the options, as a line of the table names them."""
    return f"--epochs={arguments.epochs} --steps={arguments.steps}"


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--csv", type=Path, required=True, help="one line a run; read first")
    parser.add_argument("--settings", choices=list(SETTINGS), default="tuned")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=120, help="gradient steps in an epoch")
    arguments = parser.parse_args()
    needed = ("torchrl", "botorch")
    missing_packages = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing_packages:
        sys.stdout.write(
            f"left out: {' and '.join(missing_packages)} not installed "
            "(pip install 'torchrl[pilco]==0.14.*').\n"
        )
        return
    torch.set_num_threads(1)
    there = {(row["config"], row["options"], int(row["seed"])) for row in read(arguments.csv)}
    name = f"torchrl_{arguments.settings}"
    missing = [s for s in arguments.seeds if (name, options_of(arguments), s) not in there]
    failed = 0
    total = len(missing) * arguments.epochs * arguments.steps
    with tqdm(total=total, disable=None) as bar:
        for seed in missing:
            try:
                line = run(arguments, seed, bar)
            except (ArithmeticError, RuntimeError) as error:
                failed += 1
                bar.write(f"seed {seed}: {error}", file=sys.stderr)
                continue
            add(line, arguments.csv)
    sys.stdout.write("\n".join(table(read(arguments.csv))) + "\n")
    if failed:
        raise SystemExit(f"{failed} of {len(missing)} runs failed; they are not in the table.")


if __name__ == "__main__":
    main()
