"""The examples run, learn something, and are short enough to be read."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from lightning_proppo import PropagationManager
from lightning_proppo.installed_lightning import pl
from proppo_agents import PILCO

from .quiet import QUIET
from .scripts import load_script

FOLDER = Path(__file__).resolve().parents[1] / "examples"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py"))
# The second is explained step by step in docs/writing-a-propagator.md.
LENGTHS = {"own_environment": 40, "regressed_lr": 180, "world_model": 90}


def load(name: str) -> Any:
    return load_script(FOLDER / f"{name}.py")


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_is_short_and_says_how_it_is_run(name: str) -> None:
    text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) < LENGTHS.get(name, 60)
    assert f"python examples/{name}.py" in text.split('"""')[1]


def test_the_plain_loop_learns(capsys: pytest.CaptureFixture[str]) -> None:
    costs = load("plain_loop").main(["--steps", "60"])
    assert costs[-1] < 0.5 * costs[0]
    assert "mean cost: " in capsys.readouterr().out


@pytest.mark.usefixtures("pytorch_lightning")
def test_the_lightning_module_trains() -> None:
    # At first the cost is about 45, as the plain loop says.
    trainer = load("lightning_module").main(["--steps", "60", "--estimator", "TP"], **QUIET)
    assert trainer.callback_metrics["propagation/cost"] < 22


@pytest.mark.usefixtures("pytorch_lightning")
def test_an_actor_learns_beside_its_world_model() -> None:
    # Without torque the pendulum costs 64; at first, with a model that knows nothing, it is 460.
    trainer = load("world_model").main(["--steps", "60"], **QUIET)
    assert trainer.callback_metrics["propagation/cost"] < 36
    assert all(parameter.requires_grad for parameter in trainer.lightning_module.parameters())


def test_fabric_learns() -> None:
    costs = load("fabric").main(["--steps", "60", "--accelerator", "cpu"])
    assert costs[-1] < 0.5 * costs[0]


def test_the_gradient_through_a_discrete_latent_is_the_exact_one() -> None:
    example = load("discrete_latent")
    logits = torch.tensor([0.2, -0.1, 0.5, 0.0], dtype=torch.float64, requires_grad=True)
    example.PRICES = example.PRICES.double()
    found = torch.stack([example.estimate(logits, 100) for _ in range(400)])
    error = found.std(0) / 20
    # Of 4 normal numbers one is beyond 4.4 once in 20,000 times.
    assert ((found.mean(0) - example.exact(logits)).abs() < 4.4 * error).all()


def test_the_right_machine_is_learned() -> None:
    assert load("discrete_latent").main(["--steps", "150"]).argmax() == 2


@pytest.mark.parametrize("estimator", ["TP", "LR", "RP"])
def test_the_gradient_through_a_stochastic_layer_is_the_exact_one(estimator: str) -> None:
    torch.set_default_dtype(torch.float64)
    manager = PropagationManager(estimator)
    network = load("stochastic_layer").NoisyNet(manager)
    x = torch.linspace(-2, 2, 20).unsqueeze(1)
    target = torch.sin(2 * x)
    parameters = list(network.parameters())

    # The output is linear in the normal units, so that the expected squared error is known.
    mean = network.decode(network.encode(x))
    variance = (network.decode.weight.square() * (2 * network.log_std).exp()).sum()
    exact = torch.autograd.grad(((mean - target).square() + variance).mean(), parameters)

    many = x.repeat(5, 1)
    estimates = []
    for _ in range(400):
        loss = manager.loss((network(many) - target.repeat(5, 1)).square())
        estimates.append(torch.autograd.grad(loss, parameters))
    for own, true in zip(zip(*estimates, strict=True), exact, strict=True):
        found = torch.stack(own)
        # Of 65 normal numbers one is beyond 5 once in 27,000 times.
        assert ((found.mean(0) - true).abs() <= 5 * found.std(0) / 20).all()


def test_the_network_with_a_stochastic_layer_learns() -> None:
    losses = load("stochastic_layer").main(["--steps", "150"])
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.slow
@pytest.mark.usefixtures("pytorch_lightning")
def test_an_environment_of_ones_own_is_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pl.Trainer, "__init__", _quiet(pl.Trainer.__init__))
    try:
        agent = runpy.run_path(str(FOLDER / "own_environment.py"), run_name="__main__")["agent"]
    finally:
        gymnasium.registry.pop("Puck-v0", None)
    assert isinstance(agent, PILCO)
    learned = np.array(agent.evaluate_policy(episodes=5, seed=100)["returns"])
    random = []
    agent.env.action_space.seed(0)
    for seed in range(20):
        agent.env.reset(seed=seed)
        random.append(0.0)
        ended = False
        while not ended:
            _, reward, terminated, truncated, _ = agent.env.step(agent.env.action_space.sample())
            random[-1] += float(reward)
            ended = terminated or truncated
    # Nobody gets 20, for the puck starts away from the origin.
    assert learned.min() > 14
    assert learned.min() > 2 * max(random)
    controller = torch.export.load(tmp_path / "puck.pt2").module()
    force = controller(torch.tensor([[1.0, -1.0, 0.0, 0.0]]))
    assert force[0, 0] < 0 < force[0, 1]


def _quiet(init: Any) -> Any:
    def quiet(self: pl.Trainer, **options: Any) -> None:
        init(self, **{**QUIET, **options})

    return quiet


def test_the_notebook_runs_and_says_what_it_shows() -> None:
    notebook = json.loads((FOLDER / "quick_start.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["execution_count"]
            exec(compile("".join(cell["source"]), "quick_start.ipynb", "exec"), names)
    deviations = names["deviations"]
    assert deviations["RP", 0.5] < deviations["LR", 0.5]
    assert deviations["RP", 3.0] > 1000 * deviations["LR", 3.0]
    for gain in (0.5, 3.0):
        assert deviations["TP", gain] < 1.5 * min(deviations[name, gain] for name in ("RP", "LR"))
