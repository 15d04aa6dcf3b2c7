"""The monitor in real Trainers: what it logs, where, and what it leaves alone."""

from __future__ import annotations

import copy
import csv
import math
import pickle
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from torch import Tensor, nn
from torch.distributions import Categorical, Normal
from torch.utils.data import DataLoader

from lightning_proppo import PropagationCallback, PropagationManager, VarianceMonitor
from lightning_proppo.callbacks import variance
from lightning_proppo.callbacks.alarms import Alarm, Disagreement
from lightning_proppo.callbacks.pictures import Column, draw_columns
from lightning_proppo.comparison import Comparison, Difference
from lightning_proppo.propagators import PauseProp
from lightning_proppo.propagators.comparing import comparing_propagators
from proppo_envs import ChaoticRNN

from ...errors import all_that_it_says
from ...quiet import QUIET

PARTICLES = 16
COMPARABLE = ("RP", "LR", "TP")
KINDS = ("variance", "snr", "gradient_norm", "particles_needed", "not_finite")
OF_RP = ("bias/RP", "disagreement/RP")
OF_USED = ("gradient/variance", "gradient/snr", "gradient/norm", "gradient/not_finite")
Z = 4.0  # two-sided; one in 15,000 by chance


def roll(module: Any, cost: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    x = torch.zeros(PARTICLES, 2)
    for _ in range(3):
        x = module.manager.sample(Normal(x + module.net(x), 0.1))
    return module.manager.loss((x - 1.0).square().sum(1) if cost is None else cost(x))


def roll_with_a_cost_function(module: Any) -> Tensor:
    """As shaping needs it."""
    x = torch.zeros(PARTICLES, 2)
    for _ in range(3):
        x = module.manager.sample(Normal(x + module.net(x), 0.1))
    return module.manager.loss(x, lossfunc=lambda x: (x - 1.0).square().sum(1))


def make_module(
    pl: ModuleType, step: Callable[[Any], Tensor] = roll, batches: int = 4, rate: float = 0.01
) -> Any:
    class Module(pl.LightningModule):
        def __init__(self, width: int = 24) -> None:
            super().__init__()
            self.save_hyperparameters()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 2))
            self.seen: list[type] = []

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            del batch, batch_idx
            if hasattr(self, "manager"):
                self.seen.append(type(self.manager.default_propagator))
            return step(self)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=rate)

        def train_dataloader(self) -> Any:
            return DataLoader(range(batches), batch_size=1)

    return Module()


def fit(
    pl: ModuleType,
    module: Any,
    callbacks: Sequence[Any],
    logger: Any = False,
    epochs: int = 1,
    seed: int = 1,
    ckpt_path: Path | None = None,
    **options: Any,
) -> Any:
    options = {**QUIET, "logger": logger, "max_epochs": epochs, **options}
    trainer = pl.Trainer(callbacks=list(callbacks), log_every_n_steps=1, **options)
    torch.manual_seed(seed)
    trainer.fit(module, ckpt_path=ckpt_path)
    return trainer


def make_recorder(pl: ModuleType) -> Any:
    """Return a logger that keeps what it is given, as W&B's and MLflow's would be given it."""

    class Recorder(pl.loggers.logger.Logger):
        name, version = "recorder", 0

        def __init__(self) -> None:
            super().__init__()
            self.rows: list[tuple[int | None, dict[str, float]]] = []

        def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            self.rows.append((step, metrics))

    return Recorder()


# -- what is logged, and where -------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["RP", "LR", "TP"])
def test_scalars_reach_any_logger(pl: ModuleType, estimator: str) -> None:
    logger = make_recorder(pl)
    monitor = VarianceMonitor(every_n_steps=2)
    fit(pl, make_module(pl), [PropagationCallback(estimator), monitor], logger)
    rows = [(step, found) for step, found in logger.rows if "gradient/variance" in found]
    assert [step for step, _ in rows] == [0, 2]
    expected = {*OF_USED, *OF_RP, *(f"{kind}/{name}" for kind in KINDS for name in COMPARABLE)}
    for _, found in rows:
        assert set(found) == expected
        assert all(isinstance(value, float) and math.isfinite(value) for value in found.values())
        assert found["gradient/variance"] == found[f"variance/{estimator}"] > 0
        assert found[f"particles_needed/{estimator}"] == pytest.approx(PARTICLES)
        ratio = found["variance/LR"] / found[f"variance/{estimator}"]
        assert found["particles_needed/LR"] == pytest.approx(PARTICLES * ratio)
        norm, variance = found["gradient/norm"], found["gradient/variance"]
        expected_snr = max(norm**2 - variance, 0) / variance
        assert found["gradient/snr"] == pytest.approx(expected_snr, rel=1e-4)
    assert monitor.last == rows[-1][1]


def make_wall(pl: ModuleType, smooth: bool = False, batches: int = 4) -> Any:
    """Return a module whose dynamics jump: x is thrown back to 0.2 beyond 0.5.

    RP's gradient is -2.29, the true one -1.457.
    """

    class Wall(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.theta = nn.Parameter(torch.tensor(0.2))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            del batch, batch_idx
            x = torch.zeros(1000, 1)
            for _ in range(10):
                away = torch.where(x > (torch.inf if smooth else 0.5), 0.2, 0.9 * x)
                x = self.manager.sample(Normal(away + self.theta, 0.2))
            return self.manager.loss((x - 1.0).square())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.0)

        def train_dataloader(self) -> Any:
            return DataLoader(range(batches), batch_size=1)

    return Wall()


def rows_of(pl: ModuleType, module: Any, estimator: str, name: str) -> Tensor:
    """Return what every step logs under a name."""
    logger = make_recorder(pl)
    fit(pl, module, [PropagationCallback(estimator), VarianceMonitor(every_n_steps=1)], logger)
    return torch.tensor([found[name] for _, found in logger.rows if name in found])


def test_the_bias_of_a_jump_is_shown(one_pl: ModuleType) -> None:
    found = rows_of(one_pl, make_wall(one_pl, batches=30), "RP", "bias/RP")
    error = float(found.std()) / len(found) ** 0.5
    assert abs(float(found.mean()) - (2.29 - 1.457)) < Z * error + 0.005  # its rounding


def test_without_a_jump_the_difference_has_the_length_of_its_noise(one_pl: ModuleType) -> None:
    module = make_wall(one_pl, smooth=True, batches=60)
    squares = rows_of(one_pl, module, "RP", "disagreement/RP").square()
    error = float(squares.std()) / len(squares) ** 0.5
    assert abs(float(squares.mean()) - 1) < Z * error


def test_there_is_no_bias_to_be_seen_without_lr(one_pl: ModuleType) -> None:
    monitor = VarianceMonitor(every_n_steps=1, compare=["RP"])
    fit(one_pl, make_module(one_pl), [PropagationCallback("RP"), monitor])
    assert not set(OF_RP) & set(monitor.last)


def test_csv_gets_scalars(one_pl: ModuleType, tmp_path: Path) -> None:
    logger = one_pl.loggers.CSVLogger(str(tmp_path), name="csv", version=0)
    monitor = VarianceMonitor(every_n_steps=2)
    fit(one_pl, make_module(one_pl), [PropagationCallback("TP"), monitor], logger)
    logger.save()
    with (tmp_path / "csv" / "version_0" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("variance/RP")]
    assert [int(row["step"]) for row in rows] == [0, 2]
    assert all(float(row["variance/LR"]) > 0 for row in rows)


def test_without_a_logger_there_is_no_crash(pl: ModuleType) -> None:
    monitor = VarianceMonitor(every_n_steps=1)
    fit(pl, make_module(pl), [PropagationCallback("TP"), monitor])
    assert monitor.last["variance/RP"] > 0


def charts_of(events: EventAccumulator) -> dict[tuple[str, str], list[str]]:
    """Return the custom scalars' charts: which tags, by category and title."""
    layout = layout_pb2.Layout()
    layout.ParseFromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    return {
        (category.title, chart.title): list(chart.multiline.tag)
        for category in layout.category
        for chart in category.chart
    }


def test_tensorboard_gets_pages(pl: ModuleType, tmp_path: Path) -> None:
    logger = pl.loggers.TensorBoardLogger(str(tmp_path), name="tb", version=0)
    monitor = VarianceMonitor(every_n_steps=1)
    fit(pl, make_module(pl), [PropagationCallback("LR"), monitor], logger)
    events = EventAccumulator(str(tmp_path / "tb" / "version_0"), size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()
    expected = {f"{kind}/{name}" for kind in ("variance", "log10_variance") for name in COMPARABLE}
    assert expected <= set(tags["scalars"])
    shown = ("variance_RP", "variance_LR", "weight_on_LR", "disagreement")
    assert {f"by_time_step/{name}" for name in shown} == set(tags["images"])
    assert len(tags["histograms"]) == 3
    # One name for an image and a histogram would hide one of them.
    assert not set(tags["images"]) & set(tags["histograms"])
    assert "custom_scalars__config__" in tags["tensors"]
    charts = charts_of(events)
    assert charts["Gradient estimators", "log10 of variance"] == [
        f"log10_variance/{name}$" for name in COMPARABLE
    ]
    assert charts["Gradient estimators", "log10 of bias"] == ["log10_bias/RP$"]
    assert charts["Gradient estimators", "disagreement in standard errors"] == ["disagreement/RP$"]
    assert "disagreement/RP" in tags["scalars"]
    # TensorBoard's order of curves is another at every start.
    assert not any(name in title for _, title in charts for name in COMPARABLE)
    hparams = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"estimator" in hparams
    assert b"LR" in hparams
    assert b"width" in hparams


# -- several managers ----------------------------------------------------------------------------


def make_actor_and_critic(pl: ModuleType) -> Any:
    """Return a module with two managers, each with a rollout in each batch."""

    class ActorAndCritic(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Linear(2, 2)
            self.manager = PropagationManager("TP")
            self.critic_manager = PropagationManager("LR")

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            del batch, batch_idx
            losses = []
            for manager in (self.manager, self.critic_manager):
                x = manager.sample(Normal(self.net(torch.zeros(PARTICLES, 2)), 0.1))
                losses.append(manager.loss((x - 1.0).square().sum(1)))
            return losses[0] + losses[1]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01)

        def train_dataloader(self) -> Any:
            return DataLoader(range(4), batch_size=1)

    return ActorAndCritic()


def test_each_manager_has_a_monitor_of_its_own_name(pl: ModuleType, tmp_path: Path) -> None:
    logger = pl.loggers.TensorBoardLogger(str(tmp_path), name="tb", version=0)
    monitors = [
        VarianceMonitor(every_n_steps=2, name="actor"),
        VarianceMonitor(every_n_steps=1, attribute="critic_manager", name="critic"),
    ]
    trainer = fit(pl, make_actor_and_critic(pl), monitors, logger)
    for monitor, used in zip(monitors, ("TP", "LR"), strict=True):
        last, name = monitor.last, monitor.name
        assert last[f"{name}/gradient/variance"] == last[f"{name}/variance/{used}"] > 0
    events = EventAccumulator(str(tmp_path / "tb" / "version_0"))
    events.Reload()
    for kind in ("scalars", "images", "histograms"):
        tags = events.Tags()[kind]
        shared = {"epoch", "hp_metric"} if kind == "scalars" else set()
        assert {tag.split("/")[0] for tag in tags} - shared == {"actor", "critic"}
    charts = charts_of(events)
    assert charts["Gradient estimators: critic", "log10 of variance"] == [
        f"critic/log10_variance/{name}$" for name in COMPARABLE
    ]
    assert {category for category, _ in charts} == {
        "Gradient estimators: actor",
        "Gradient estimators: critic",
    }
    hparams = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"actor/estimator" in hparams
    assert b"critic/estimator" in hparams

    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = [
        VarianceMonitor(name="actor"),
        VarianceMonitor(attribute="critic_manager", name="critic"),
    ]
    fit(pl, make_actor_and_critic(pl), again, ckpt_path=tmp_path / "a.ckpt")
    assert [monitor._due for monitor in again] == [monitor._due for monitor in monitors] == [4, 4]
    assert [monitor.last for monitor in again] == [monitor.last for monitor in monitors]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attribute": "critic_manager"}, "2 VarianceMonitors have the name ''.*name='critic'"),
        ({"name": "critic"}, "2 VarianceMonitors have the attribute 'manager'"),
    ],
)
def test_monitors_that_cannot_be_told_apart(
    one_pl: ModuleType, arguments: dict[str, Any], message: str
) -> None:
    monitors = [VarianceMonitor(), VarianceMonitor(**arguments)]
    with pytest.raises(ValueError, match=message):
        fit(one_pl, make_actor_and_critic(one_pl), monitors)


# What a checkpoint held of a monitor of any attribute before there were names.
@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
@pytest.mark.parametrize("attribute", ["manager", "critic_manager"])
def test_a_monitor_without_a_name_finds_its_former_state(
    one_pl: ModuleType, tmp_path: Path, attribute: str
) -> None:
    monitor = VarianceMonitor(every_n_steps=3)
    trainer = fit(one_pl, make_actor_and_critic(one_pl), [monitor])
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    other = VarianceMonitor(attribute=attribute)
    fit(one_pl, make_actor_and_critic(one_pl), [other], ckpt_path=tmp_path / "a.ckpt")
    assert other._due == 6
    assert other.last == monitor.last


# -- what is left alone --------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["RP", "LR", "TP", "TPX", "GS", "TP+MESH"])
def test_training_is_the_same_as_without(one_pl: ModuleType, estimator: str) -> None:
    trained = []
    for more in ([], [VarianceMonitor(every_n_steps=2)]):
        module = make_module(one_pl, roll_with_a_cost_function, batches=6)
        fit(one_pl, module, [PropagationCallback(estimator), *more])
        trained.append(module.state_dict())
    for name, value in trained[0].items():
        torch.testing.assert_close(trained[1][name], value, rtol=1e-5, atol=1e-7)


def test_other_steps_run_with_the_managers_own_propagators(one_pl: ModuleType) -> None:
    module = make_module(one_pl, batches=7)
    callback = PropagationCallback("TP")
    own = callback._manager.default_propagator, callback._manager.loss_propagator
    fit(one_pl, module, [callback, VarianceMonitor(every_n_steps=3)])
    kinds = [kind is type(own[0]) for kind in module.seen]
    assert kinds == [False, True, True, False, True, True, False]
    manager = module.manager
    assert (manager.default_propagator, manager.loss_propagator) == own


def test_steps_are_those_of_the_optimizer(one_pl: ModuleType) -> None:
    logger = make_recorder(one_pl)
    module = make_module(one_pl, batches=8)
    callbacks = [PropagationCallback("TP"), VarianceMonitor(every_n_steps=2)]
    fit(one_pl, module, callbacks, logger, accumulate_grad_batches=2)
    steps = [step for step, found in logger.rows if "gradient/variance" in found]
    assert steps == [0, 2]


def make_pair(pl: ModuleType, roll: Callable[[Any], Tensor] = roll, batches: int = 12) -> Any:
    """Return a module with two optimizers, which both step in each batch."""

    class Pair(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(2, 24), nn.Tanh(), nn.Linear(24, 2))
            self.other = nn.Linear(2, 2)

        def training_step(self, batch: Any, batch_idx: int) -> None:
            del batch, batch_idx
            losses = self.other(torch.randn(8, 2)).square().mean(), roll(self)
            for optimizer, loss in zip(self.optimizers(), losses, strict=True):
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
            self.log("loss", losses[0].detach())

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(part.parameters(), lr=0.01) for part in (self.other, self.net)]

        def train_dataloader(self) -> Any:
            return DataLoader(range(batches), batch_size=1)

    return Pair()


def test_numbers_are_logged_at_the_steps_of_the_modules_own(
    one_pl: ModuleType, tmp_path: Path
) -> None:
    logger = one_pl.loggers.CSVLogger(str(tmp_path), name="csv", version=0)
    monitor = VarianceMonitor(every_n_steps=4)
    trainer = fit(one_pl, make_pair(one_pl), [PropagationCallback("TP"), monitor], logger)
    logger.save()
    with (tmp_path / "csv" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows if row["loss"]] == [*range(12)]
    # Two optimizer steps in each batch: a look at every fourth of them.
    assert [int(row["step"]) for row in rows if row["variance/RP"]] == [0, 2, 4, 6, 8, 10]
    assert trainer.global_step == monitor._due == 24


def test_two_optimizers_without_a_rollout_have_a_variance(one_pl: ModuleType) -> None:
    def step(module: Any) -> Tensor:
        return module.net(torch.randn(PARTICLES, 2)).square().mean()

    logger = make_recorder(one_pl)
    fit(one_pl, make_pair(one_pl, step, 30), [VarianceMonitor(every_n_steps=20)], logger)
    rows = [(step, found) for step, found in logger.rows if "gradient/variance" in found]
    # Third steps of both, at or after every twentieth of either.
    assert [step for step, _ in rows] == [2, 11, 21]
    assert all(found["gradient/variance"] > 0 for _, found in rows)


def test_an_exception_gives_the_manager_its_propagators_back(one_pl: ModuleType) -> None:
    def step(module: Any) -> Tensor:
        roll(module)
        raise KeyError("lost")

    module = make_module(one_pl, step)
    callback = PropagationCallback("LR")
    own = callback._manager.default_propagator
    with pytest.raises(KeyError, match="lost") as found:
        fit(one_pl, module, [callback, VarianceMonitor()])
    assert module.manager.default_propagator is own
    assert "compare=['LR']" in all_that_it_says(found.value)


def test_it_can_be_pickled_after_training(one_pl: ModuleType) -> None:
    monitor = VarianceMonitor(every_n_steps=1)
    fit(one_pl, make_module(one_pl), [PropagationCallback("TP"), monitor])
    again = pickle.loads(pickle.dumps(monitor))
    assert again.last == monitor.last
    assert copy.deepcopy(monitor).every_n_steps == 1


# -- estimators that cannot be had ---------------------------------------------------------------


def test_discrete_samples_leave_lr(one_pl: ModuleType) -> None:
    def step(module: Any) -> Tensor:
        x = module.manager.sample(Categorical(logits=module.net(torch.ones(PARTICLES, 2))))
        return module.manager.loss(x.float())

    monitor = VarianceMonitor(every_n_steps=1)
    with pytest.warns(UserWarning, match="cannot compare RP: Categorical has no reparam"):
        fit(one_pl, make_module(one_pl, step), [PropagationCallback("LR"), monitor])
    assert "variance/RP" not in monitor.last
    assert monitor.last["variance/LR"] > 0


def test_costs_without_a_gradient_leave_lr(one_pl: ModuleType) -> None:
    monitor = VarianceMonitor(every_n_steps=1)
    module = make_module(one_pl, lambda module: roll(module, lambda x: x.detach().sum(1)))
    with pytest.warns(UserWarning, match="cannot compare TP: the costs have no gradient"):
        fit(one_pl, module, [PropagationCallback("LR"), monitor])
    assert set(monitor.last) == {*OF_USED, *(f"{kind}/LR" for kind in KINDS)}


def test_lr_alone_needs_no_samples_with_gradients(one_pl: ModuleType) -> None:
    def cost(x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy() ** 2).sum(1)

    monitor = VarianceMonitor(every_n_steps=1, compare=["LR"])
    module = make_module(one_pl, lambda module: roll(module, cost))
    fit(one_pl, module, [PropagationCallback("LR"), monitor])
    assert monitor.last["variance/LR"] > 0


def test_another_propagators_node_is_found_out(one_pl: ModuleType) -> None:
    def step(module: Any) -> Tensor:
        x = torch.zeros(PARTICLES, 2)
        for _ in range(2):
            x = module.manager.sample(Normal(x + module.net(x), 0.1))
            x = module.manager.forward(x, local_propagator=PauseProp())
        return module.manager.loss(x.square().sum(1))

    trained = []
    for more in ([], [VarianceMonitor(every_n_steps=1)]):
        module = make_module(one_pl, step)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            fit(one_pl, module, [PropagationCallback("TP"), *more])
        trained.append(module.state_dict())
    assert any("another propagator has a node" in str(w.message) for w in said)
    assert set(more[0].last) == set(OF_USED)  # the plain part, from then on
    for name, value in trained[0].items():
        torch.testing.assert_close(trained[1][name], value)


@pytest.mark.parametrize("estimator", ["GS", "TP+MESH", "GR"])
def test_other_estimators_get_the_plain_part(one_pl: ModuleType, estimator: str) -> None:
    logger = make_recorder(one_pl)
    module = make_module(one_pl, roll_with_a_cost_function, batches=8)
    fit(one_pl, module, [PropagationCallback(estimator), VarianceMonitor(every_n_steps=3)], logger)
    rows = [(step, found) for step, found in logger.rows if "gradient/variance" in found]
    assert [step for step, _ in rows] == [2, 3, 6]
    assert all(set(found) == set(OF_USED) for _, found in rows)


# -- any LightningModule -------------------------------------------------------------------------


def test_an_ordinary_loss_has_its_variance(one_pl: ModuleType) -> None:
    torch.set_default_dtype(torch.float64)
    batch, std, size = 20, 0.7, 2 * 24 + 24 + 24 * 2 + 2

    def step(module: Any) -> Tensor:
        # The gradient's noise is normal, of variance std^2 / batch in each parameter, and its mean
        # moves with the parameters.
        noise = std * torch.randn(batch, size)
        flat = torch.cat([p.flatten() for p in module.parameters()])
        return 0.5 * flat.square().sum() + (noise @ flat).mean()

    logger = make_recorder(one_pl)
    monitor = VarianceMonitor(every_n_steps=4)
    fit(one_pl, make_module(one_pl, step, batches=400), [monitor], logger)
    found = torch.tensor([row["gradient/variance"] for _, row in logger.rows])
    assert len(found) >= 99
    error = found.std() / len(found) ** 0.5
    assert abs(found.mean() - size * std**2 / batch) < Z * error


def test_gradients_that_are_not_finite_are_counted(one_pl: ModuleType) -> None:
    def step(module: Any) -> Tensor:
        return module.net(torch.ones(3, 2)).sum() * torch.inf

    monitor = VarianceMonitor(every_n_steps=3)
    fit(one_pl, make_module(one_pl, step), [monitor])
    assert monitor.last["gradient/not_finite"] > 0
    assert monitor.last["gradient/snr"] == 0


# -- parameters that are not stepped -------------------------------------------------------------


def make_agent(
    pl: ModuleType, order: str, frozen: str | None = None, target: bool = False, rest: str = ""
) -> Any:
    """Return a module with a world model and an actor.

    Args:
        pl: Lightning.
        order: of what is done in a batch: "m", "a" differentiate the model's loss and the rollout,
            "M", "A" step the optimizers; "0" clears all gradients. "" for automatic optimization.
        frozen: how the model is frozen in the rollout, "by hand" or "toggled".
        target: name the actor as TP's target.
        rest: "no optimizer" leaves the model without one.
    """

    class Agent(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = not order
            torch.manual_seed(0)
            self.model, self.actor = nn.Linear(4, 2), nn.Linear(2, 2)

        def roll(self) -> Tensor:
            x = torch.zeros(PARTICLES, 2)
            options = {"ivw_target": self.actor} if target else {}
            for _ in range(2):
                action = self.manager.sample(Normal(self.actor(x), 0.1), **options)
                mean = self.model(torch.cat([x, action], 1))
                x = self.manager.sample(Normal(mean, 0.1), **options)
            return self.manager.loss((x - 1.0).square().sum(1))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
            del batch, batch_idx
            if frozen == "by hand":
                self.model.requires_grad_(False)
            if not order:
                return self.roll()
            optimizers = dict(zip("MA", self.optimizers(), strict=True))
            for action in order:
                if action == "0":
                    self.zero_grad()
                elif action == "m":
                    self.model.requires_grad_()
                    self.manual_backward(self.model(torch.randn(8, 4)).square().mean())
                    self.model.requires_grad_(frozen != "by hand")
                elif action == "a":
                    if frozen == "toggled":
                        self.toggle_optimizer(optimizers["A"])
                    self.manual_backward(self.roll())
                    if frozen == "toggled":
                        self.untoggle_optimizer(optimizers["A"])
                else:
                    optimizers[action].step()
            return None

        def configure_optimizers(self) -> Any:
            if rest == "no optimizer":
                return torch.optim.SGD(self.actor.parameters(), lr=0.01)
            if not order:
                return torch.optim.SGD(self.parameters(), lr=0.01)
            return [
                torch.optim.SGD(part.parameters(), lr=0.01) for part in (self.model, self.actor)
            ]

        def train_dataloader(self) -> Any:
            return DataLoader(range(2), batch_size=1)

    return Agent()


def hints(pl: ModuleType, module: Any, estimator: str = "TP") -> list[str]:
    """Return what the monitor says of parameters that are not stepped."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit(pl, module, [PropagationCallback(estimator), VarianceMonitor(every_n_steps=1)])
    return [str(w.message) for w in said if "not stepped" in str(w.message)]


@pytest.fixture
def _nothing_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variance, "_warned", set())


@pytest.mark.usefixtures("_nothing_said_yet")
@pytest.mark.parametrize(
    "arguments",
    [
        {"order": "0mM0aA"},
        {"order": "0aA0mM"},
        {"order": "", "rest": "no optimizer"},
    ],
)
def test_a_world_model_that_is_not_stepped_is_said_once(
    one_pl: ModuleType, arguments: dict[str, Any]
) -> None:
    (hint,) = hints(one_pl, make_agent(one_pl, **arguments))
    assert "2 of these 4 are not stepped with its gradient: model (2)." in hint
    assert "requires_grad_(False)" in hint


@pytest.mark.usefixtures("_nothing_said_yet")
@pytest.mark.parametrize(
    "arguments",
    [
        {"order": "0mM0aA", "frozen": "by hand"},
        {"order": "0mM0aA", "frozen": "toggled"},
        {"order": "", "rest": "no optimizer", "frozen": "by hand"},
        {"order": "0mM0aA", "target": True},
        {"order": "0mM0aA", "estimator": "TPX"},
        {"order": "0mM0aA", "estimator": "RP"},
        {"order": ""},
        {"order": "0maMA"},  # the rollout's gradient steps both
        {"order": "0amAM"},
        {"order": "0a"},  # accumulated, or thrown away
    ],
)
def test_nothing_is_said_where_weights_serve_what_is_stepped(
    one_pl: ModuleType, arguments: dict[str, Any]
) -> None:
    estimator = arguments.get("estimator", "TP")
    given = {name: value for name, value in arguments.items() if name != "estimator"}
    assert hints(one_pl, make_agent(one_pl, **given), estimator) == []


# -- arguments -----------------------------------------------------------------------------------


def test_the_variance_of_some_parameters(one_pl: ModuleType) -> None:
    found = {}
    for names in (["net.0"], ["net.2.weight", "net.2.bias"], None):
        monitor = VarianceMonitor(every_n_steps=100, parameters=names, sketches=200)
        fit(one_pl, make_module(one_pl), [PropagationCallback("TP"), monitor])
        found[str(names)] = monitor.last
    first, second, whole = found.values()
    for name in ("variance/RP", "variance/LR"):
        assert first[name] + second[name] == pytest.approx(whole[name], rel=0.05)


def test_parameters_that_are_not_there(one_pl: ModuleType) -> None:
    monitor = VarianceMonitor(parameters=["policy"])
    with pytest.raises(ValueError, match=r"no parameter or submodule .* named 'policy'.*net\.0"):
        fit(one_pl, make_module(one_pl), [PropagationCallback("TP"), monitor])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": None}, "name must be a string that tags begin with; got None"),
        ({"every_n_steps": 0}, "every_n_steps must be an int of at least 1; got 0"),
        ({"sketches": 1.5}, "sketches must be an int"),
        ({"compare": "RP"}, "compare must be a list"),
        ({"compare": ["PR"]}, "compare must be one of RP, LR, TP; got 'PR'"),
        ({"parameters": "net"}, "parameters must be a list"),
        ({"parameters": []}, "parameters must be a list"),
        ({"alarm": "shout"}, "alarm must be one of warn, stop; got 'shout'"),
        ({"min_snr": -1}, "min_snr must be a number of 0 or more"),
        ({"max_rp_ratio": "many"}, "max_rp_ratio must be a number"),
        ({"patience": 0}, "patience must be an int of at least 1"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VarianceMonitor(**arguments)


# -- the alarm -----------------------------------------------------------------------------------


def noise_only(module: Any) -> Tensor:
    """A loss whose gradient is noise."""
    return sum((p * torch.randn_like(p)).sum() for p in module.parameters())


@pytest.mark.parametrize("action", ["warn", "stop"])
def test_noise_raises_the_alarm_once(pl: ModuleType, action: str) -> None:
    module = make_module(pl, noise_only, batches=40)
    monitor = VarianceMonitor(every_n_steps=3, alarm=action, min_snr=1.0, patience=4)
    verb = "stops the training" if action == "stop" else "warns"
    with pytest.warns(UserWarning, match=f"{verb} at step") as found:
        trainer = fit(pl, module, [monitor])
    said = [str(w.message) for w in found if "VarianceMonitor" in str(w.message)]
    assert len(said) == 1
    assert "signal-to-noise ratio is" in said[0]
    assert (trainer.global_step < 40) == (action == "stop")


def test_a_good_signal_raises_none(one_pl: ModuleType) -> None:
    module = make_module(one_pl, batches=20, rate=1e-4)
    monitor = VarianceMonitor(every_n_steps=1, alarm="stop", patience=3)
    assert fit(one_pl, module, [PropagationCallback("TP"), monitor]).global_step == 20


def test_rp_that_explodes_raises_the_alarm() -> None:
    alarm = Alarm("warn", 0.0, 100.0, patience=2)
    assert alarm.check(1.0, 1.0, 5.0) == ()
    assert alarm.check(1.0, 1.0, 500.0) == ()
    (words,) = alarm.check(1.0, 1.0, math.inf)
    assert not words.harmless
    assert words.text.startswith("RP's variance is inf times LR's")
    assert alarm.check(1.0, 1.0, math.nan) == ()  # said already


def warnings_of(pl: ModuleType, module: Any, *callbacks: Any) -> tuple[list[str], Any]:
    """Return what monitors say in a training, and the Trainer."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer = fit(pl, module, callbacks)
    return [str(w.message) for w in said if "VarianceMonitor" in str(w.message)], trainer


@pytest.mark.parametrize(
    ("estimator", "options", "message"),
    [
        (
            "RP",
            {},
            "RP, in use, misses that: its gradient is wrong.*Use the estimator 'TP' or 'LR'",
        ),
        ("TP", {"guard": False}, "TP without its guard, in use, misses that.*Use guard=True"),
    ],
)
def test_a_jump_that_the_gradient_misses_stops_the_training(
    one_pl: ModuleType, estimator: str, options: dict[str, Any], message: str
) -> None:
    monitor = VarianceMonitor(every_n_steps=1, alarm="stop", patience=8)
    callback = PropagationCallback(estimator, options=options)
    (words,), trainer = warnings_of(one_pl, make_wall(one_pl, batches=30), callback, monitor)
    assert re.search(f"VarianceMonitor stops the training .*{message}", words)
    assert "however high its signal-to-noise ratio" in words
    assert 8 <= trainer.global_step < 30


@pytest.mark.parametrize(
    ("estimator", "message"),
    [("TP", "TP, in use, relies on LR there"), ("LR", "LR, in use, does not")],
)
def test_a_jump_that_the_gradient_sees_is_said_and_stops_nothing(
    one_pl: ModuleType, estimator: str, message: str
) -> None:
    """Where: after the last sample but one, whose successor is thrown back."""
    monitor = VarianceMonitor(every_n_steps=1, alarm="stop", min_snr=0.0, patience=8)
    callback = PropagationCallback(estimator)
    (words,), trainer = warnings_of(one_pl, make_wall(one_pl, batches=30), callback, monitor)
    begin = "VarianceMonitor warns .*RP and LR disagree at time step 8 by [0-9]+ standard"
    assert re.search(f"{begin}.* after what is drawn there.*{message}", words)
    assert trainer.global_step == 30


def test_without_a_jump_there_is_no_alarm(one_pl: ModuleType) -> None:
    monitor = VarianceMonitor(every_n_steps=1, alarm="stop", min_snr=0.0, patience=3)
    module = make_wall(one_pl, smooth=True, batches=100)
    words, trainer = warnings_of(one_pl, module, PropagationCallback("RP"), monitor)
    assert words == []
    assert trainer.global_step == 100


def test_chaos_where_rp_is_right_raises_none() -> None:
    """The chaotic network; RP's variance is many times LR's."""
    torch.manual_seed(0)
    manager = PropagationManager("RP")
    own = manager.default_propagator
    system = ChaoticRNN(horizon=30)
    beta = torch.tensor([2.7], dtype=torch.float64, requires_grad=True)
    alarm = Alarm("stop", 0.0, math.inf, patience=5)
    for _ in range(40):
        comparison = Comparison("RP")
        found = comparing_propagators(own, comparison)
        manager.default_propagator, manager.loss_propagator = found
        x = system.initial_state(200, torch.float64)
        for _ in range(system.horizon):
            x = manager.sample(system.transition(x, beta))
        manager.loss(system.cost(x)).backward()
        findings = comparison.findings(manager.disagreement)
        assert findings is not None
        assert findings.difference is not None
        latest = disagreement(
            0.0,
            findings.disagreement.tolist(),
            difference=findings.difference.folded(),
            particles=200,
        )
        assert alarm.check(1.0, 1.0, None, latest) == ()


def disagreement(z: float, by_row: Sequence[float] = (), **options: Any) -> Disagreement:
    """Return what a look may say: the rollout's difference, and time steps'."""
    return Disagreement(
        **{
            "used": "RP",
            "guarded": True,
            "difference": Difference(torch.tensor([z, 0.0], dtype=torch.float64), 1.0),
            "particles": 10**6,
            "by_row": torch.tensor(by_row, dtype=torch.float64),
            "rows": "time step",
            **options,
        }
    )


def test_differences_are_pooled_over_looks() -> None:
    """3 errors four times are 6 together; with changing signs they are none."""
    for signs, said in (((1, 1, 1, 1), 0), ((1, 1, 1, 1.1), 1), ((1, -1, 1, -1), 0)):
        alarm = Alarm("warn", 0.0, 1e3, patience=4)
        found = [alarm.check(1.0, 1.0, None, disagreement(2.99 * sign)) for sign in signs]
        assert [len(words) for words in found] == [0, 0, 0, said]


def test_a_difference_that_is_not_finite_is_none() -> None:
    alarm = Alarm("warn", 0.0, 1e3, patience=3)
    for z in (7.0, math.nan, math.inf):
        assert not alarm._said
        (*said,) = alarm.check(1.0, 1.0, None, disagreement(z))
    assert [words.text.startswith("RP and LR disagree by 7 ") for words in said] == [True]


def test_few_particles_prove_little() -> None:
    alarm = Alarm("warn", 0.0, 1e3, patience=1)
    assert alarm.check(1.0, 1.0, None, disagreement(100.0, particles=36)) == ()
    assert len(alarm.check(1.0, 1.0, None, disagreement(100.0, particles=37))) == 1


@pytest.mark.parametrize(
    ("significant", "rows", "words"),
    [
        ([14, 15, 16], "time step", "at time steps 14 to 16 by up to 9"),
        ([0], "sample", "at sample 0 by 9"),
        ([3, 5, 7, 8], "time step", "at time steps 3, 5 and 7 to 8 by up to 9"),
        ([], "time step", "disagree by 8"),
    ],
)
def test_an_alarm_says_where(significant: list[int], rows: str, words: str) -> None:
    by_row = [9.0 if row in significant else 5.9 for row in range(20)]
    alarm = Alarm("warn", 0.0, 1e3, patience=1)
    (said,) = alarm.check(1.0, 1.0, None, disagreement(8.0, by_row, rows=rows))
    assert words in said.text


def test_looks_are_pooled() -> None:
    alarm = Alarm("warn", 0.5, 1e3, patience=3)
    for signal in (4.0, -1.0, 0.0):  # (4 - 1 + 0) / 3 = 1
        assert alarm.check(signal, 1.0) == ()
    assert alarm.check(0.0, 1.0) != ()


# -- the images ----------------------------------------------------------------------------------


def test_images_show_what_there_is() -> None:
    horizon = 10
    rising = torch.logspace(3, -3, horizon, dtype=torch.float64)
    columns = [
        Column(step, {"RP": rising, "LR": torch.ones(horizon)}, torch.zeros(0))
        for step in (0, 2, 4)
    ]
    figures = draw_columns(columns)
    assert set(figures) == {"variance_RP", "variance_LR"}  # nor is there any disagreement
    ax = figures["variance_RP"].axes[0]
    assert ax.get_xlabel() == "training step"
    (front,) = (line for line in ax.lines if line.get_label() == "front")
    assert list(front.get_ydata()) == [5.0, 5.0, 5.0]  # five samples where RP is noisier


def test_an_image_shows_where_rp_and_lr_disagree() -> None:
    values = torch.ones(4, dtype=torch.float64)
    known = torch.tensor([1.0, 7.0, 20.0, 0.0], dtype=torch.float64)
    columns = [Column(0, {"LR": values}, values), Column(1, {}, values, "sample", known)]
    figure = draw_columns(columns)["disagreement"]
    (image,) = figure.axes[0].collections
    assert image.get_array()[:, 1].tolist() == known.tolist()
    assert image.get_array().mask[:, 0].all()  # where nothing is known
    assert (image.norm.vmin, image.norm.vmax) == (0, 12)


def test_images_say_what_their_rows_are() -> None:
    values = torch.ones(4, dtype=torch.float64)
    columns = [
        Column(step, {"LR": values}, values, rows)
        for step, rows in enumerate(("sample", "time step", "time step"))
    ]
    for count, rows in ((1, "sample"), (3, "time step")):
        for figure in draw_columns(columns[:count]).values():
            ax = figure.axes[0]
            assert ax.get_ylabel() == f"{rows} of the rollout"
            # One kind of rows only.
            assert ax.get_xlim() == ((-0.5, 0.5) if count == 1 else (0.5, 2.5))


@pytest.mark.parametrize("value", [0.0, math.inf, math.nan])
def test_images_of_values_without_a_logarithm(value: float) -> None:
    values = torch.full((4,), value, dtype=torch.float64)
    column = Column(0, {"RP": values, "LR": values}, values)
    for figure in draw_columns([column]).values():
        figure.canvas.draw()


# -- a run that goes on --------------------------------------------------------------------------


def test_an_alarm_remembers_looks_and_words() -> None:
    checks = [(4.0, 1.0, 5.0), (-1.0, 1.0, 500.0), (0.0, 1.0, 500.0), (0.0, 1.0, 500.0)]
    whole = Alarm("warn", 0.5, 100.0, patience=2)
    said = [whole.check(*each) for each in checks]
    assert [len(words) for words in said] == [0, 0, 2, 0]
    for cut in range(1, 4):
        first, second = (Alarm("warn", 0.5, 100.0, patience=2) for _ in range(2))
        told = [first.check(*each) for each in checks[:cut]]
        second.load_state_dict(first.state_dict())
        assert told + [second.check(*each) for each in checks[cut:]] == said


def test_an_alarm_remembers_differences() -> None:
    looks = [disagreement(3.1)] * 4
    whole = Alarm("warn", 0.0, 1e3, patience=4)
    said = [whole.check(1.0, 1.0, None, each) for each in looks]
    assert [len(words) for words in said] == [0, 0, 0, 1]
    for cut in range(1, 4):
        first, second = (Alarm("warn", 0.0, 1e3, patience=4) for _ in range(2))
        told = [first.check(1.0, 1.0, None, each) for each in looks[:cut]]
        second.load_state_dict(first.state_dict())
        assert told + [second.check(1.0, 1.0, None, each) for each in looks[cut:]] == said


def test_states_from_before_there_was_disagreement_are_loaded(one_pl: ModuleType) -> None:
    monitor = VarianceMonitor(every_n_steps=1)
    fit(one_pl, make_module(one_pl), [PropagationCallback("TP"), monitor])
    state = copy.deepcopy(monitor.state_dict())
    del state["alarm"]["differences"]
    for column in state["pages"]["columns"]:
        del column["disagreement"]
    other = VarianceMonitor()
    other.load_state_dict(state)
    assert other.last == monitor.last
    assert all(len(column.disagreement) == 0 for column in other._pages.columns)
    assert "disagreement" not in draw_columns(other._pages.columns)


def test_a_checkpoint_holds_the_image(one_pl: ModuleType, tmp_path: Path) -> None:
    monitor = VarianceMonitor(every_n_steps=2)
    logger = one_pl.loggers.TensorBoardLogger(tmp_path)
    module = make_module(one_pl, batches=5)
    trainer = fit(one_pl, module, [PropagationCallback("TP"), monitor], logger=logger)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    other = VarianceMonitor(every_n_steps=2)
    callbacks = torch.load(tmp_path / "a.ckpt", weights_only=True)["callbacks"]
    other.load_state_dict(callbacks["VarianceMonitor"])
    assert [column.step for column in other._pages.columns] == [0, 2, 4]
    for found, expected in zip(other._pages.columns, monitor._pages.columns, strict=True):
        found, expected = vars(found), vars(expected)
        assert found.pop("rows") == expected.pop("rows") == "time step"
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert other.last == monitor.last
    assert other._due == monitor._due == 6
