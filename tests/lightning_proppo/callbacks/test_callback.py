"""The callback in real Trainers of both packages, with each package's own LightningModule."""

from __future__ import annotations

import copy
import csv
import importlib
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.utils.data import DataLoader

from lightning_proppo import PropagationCallback, PropagationError, PropagationManager
from lightning_proppo.propagators import LRProp, TotalProp

from ...given_noise import Given
from ...quiet import QUIET

PARTICLES = 16
Step = Callable[[Any, int], Any]


def cost(x: Tensor) -> Tensor:
    return (x - 1.0).square().sum(1)


def roll(module: Any, manager: PropagationManager | None = None) -> Tensor:
    manager = module.manager if manager is None else manager
    x = torch.zeros(PARTICLES, 2)
    for _ in range(3):
        x = manager.sample(Normal(x + module.net(x), 0.1))
    return x


def good_step(module: Any, batch_idx: int) -> Tensor:
    return module.manager.loss(cost(roll(module)))


def make_module(pl: ModuleType, step: Step = good_step, batches: int = 2, **hooks: Any) -> Any:
    """Return a module of the package's own class that does ``step`` in a batch.

    Args:
        pl: the package.
        step: ``(module, batch_idx)`` to what training_step returns.
        batches: batches in an epoch.
        **hooks: more methods and class attributes.
    """

    class Module(pl.LightningModule):
        def __init__(self, rate: float = 0.1) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = nn.Linear(2, 2)
            with torch.no_grad():
                self.net.weight.fill_(0.1)
                self.net.bias.fill_(0.2)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return step(self, batch_idx)

        def train_dataloader(self) -> DataLoader[int]:
            return DataLoader(range(batches))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=self.hparams.rate)

    for name, hook in hooks.items():
        setattr(Module, name, hook)
    return Module()


def make_trainer(pl: ModuleType, *callbacks: Any, **options: Any) -> Any:
    return pl.Trainer(callbacks=list(callbacks), **{**QUIET, "max_epochs": 1, **options})


def fit(pl: ModuleType, module: Any, *callbacks: Any, **options: Any) -> Any:
    trainer = make_trainer(pl, *callbacks, **options)
    trainer.fit(module)
    return trainer


def assert_usable(pl: ModuleType, module: Any, callback: PropagationCallback) -> None:
    """What was left behind by an error must not be in the next rollout."""
    assert module.manager.recorded == 0
    assert module.manager.undifferentiated == 0
    found = []
    for manager in (module.manager, PropagationManager(callback.propagator)):
        torch.manual_seed(5)
        loss = manager.loss(cost(roll(module, manager)))
        found.append(torch.autograd.grad(loss, list(module.parameters())))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)
    type(module).training_step = lambda self, batch, batch_idx: good_step(self, batch_idx)
    before = module.net.weight.detach().clone()
    fit(pl, module, callback)
    assert not torch.equal(before, module.net.weight)


# -- the manager ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["RP", "LR", "TP", "GR", "GS", "TP+GS", "tp"])
def test_the_estimator_is_chosen_by_the_callback_alone(pl: ModuleType, name: str) -> None:
    def step(module: Any, batch_idx: int) -> Tensor:
        return module.manager.loss(roll(module), lossfunc=cost)

    module = make_module(pl, step, batches=100)
    # At 0.1, LR with so few particles diverges in one of ten trainings.
    module.hparams.rate = 0.03
    fit(pl, module, PropagationCallback(name))
    # Three steps of the mean lead from 0 to 1 where the network is 1/3 at 0 and constant.
    mean = torch.zeros(1, 2)
    for _ in range(3):
        mean = mean + module.net(mean)
    assert cost(mean).item() < 0.2
    start = torch.zeros(1, 2)
    assert cost(start + 0.2).item() > 1.2


def test_propagators_may_be_given_themselves(pl: ModuleType) -> None:
    sampler, loss = TotalProp(ivw_target="node"), LRProp(baseline=False).loss_propagator()
    module = make_module(pl)
    fit(pl, module, PropagationCallback(sampler, loss_propagator=loss))
    assert module.manager.default_propagator is sampler
    assert module.manager.loss_propagator is loss


def test_the_attribute_may_have_another_name(pl: ModuleType) -> None:
    module = make_module(pl, lambda module, _: module.mc.loss(cost(roll(module, module.mc))))
    fit(pl, module, PropagationCallback("LR", attribute="mc"))
    assert isinstance(module.mc, PropagationManager)
    assert not hasattr(module, "manager")


def test_a_module_keeps_a_manager_of_its_own(pl: ModuleType) -> None:
    module = make_module(pl)
    own = module.manager = PropagationManager("LR")
    trainer = fit(pl, module, PropagationCallback("TP"))
    assert module.manager is own
    assert "propagation/cost" in trainer.callback_metrics
    assert "propagation/lr_weight" not in trainer.callback_metrics


def test_a_manager_given_by_one_callback_gives_way_to_that_of_the_next(pl: ModuleType) -> None:
    module = make_module(pl)
    for name, kind in (("LR", LRProp), ("TP", TotalProp)):
        fit(pl, module, PropagationCallback(name))
        assert isinstance(module.manager.default_propagator, kind)


def test_something_else_under_the_attribute_is_refused(pl: ModuleType) -> None:
    with pytest.raises(PropagationError, match=r"Module\.manager must be a Propaga.*got int"):
        fit(pl, make_module(pl, manager=3), PropagationCallback())
    with pytest.raises(PropagationError, match=r"Module\.forward must be .*got method"):
        fit(pl, make_module(pl), PropagationCallback(attribute="forward"))


def test_two_callbacks_give_two_managers(pl: ModuleType) -> None:
    def step(module: Any, batch_idx: int) -> Tensor:
        first = module.manager.loss(cost(roll(module)))
        return first + module.other.loss(cost(roll(module, module.other)))

    module = make_module(pl, step)
    fit(pl, module, PropagationCallback("LR"), PropagationCallback("RP", attribute="other"))
    assert module.manager is not module.other


def test_two_callbacks_of_one_attribute_are_refused(pl: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"two PropagationCallbacks set the module's.*'manager'"):
        fit(pl, make_module(pl), PropagationCallback("LR"), PropagationCallback("RP"))


# -- misuse at construction ----------------------------------------------------------------------


def test_an_unknown_estimator_is_refused_where_it_is_written() -> None:
    with pytest.raises(ValueError, match=r"'TPP'.*RP, LR, .*TP.*Did you mean 'TP'\?"):
        PropagationCallback("TPP")


def test_a_named_estimator_takes_options() -> None:
    callback = PropagationCallback("TP", options={"noise": "quasi-random", "k_interval": 2})
    taken = callback._manager.default_propagator.default_forward_kwargs
    assert taken == {"noise": "quasi-random", "k_interval": 2}
    with pytest.raises(TypeError, match=r"unknown argument 'nose'.*Did you mean 'noise'\?"):
        PropagationCallback("TP", options={"nose": "quasi-random"})
    with pytest.raises(TypeError, match=r"options \(noise\) go with an estimator's name"):
        PropagationCallback(TotalProp(), options={"noise": "quasi-random"})


@pytest.mark.parametrize("propagator", [3, None, TotalProp])
def test_what_is_no_estimator_is_refused(propagator: Any) -> None:
    with pytest.raises(TypeError, match="propagator must be an estimator's name or a Propagator"):
        PropagationCallback(propagator)


def test_what_is_no_loss_propagator_is_refused() -> None:
    with pytest.raises(TypeError, match="loss_propagator must be a Propagator"):
        PropagationCallback("TP", loss_propagator="GS")  # type: ignore[arg-type]


@pytest.mark.parametrize("attribute", ["", "my manager", "a.b", "class", 3, None])
def test_what_is_no_attribute_is_refused(attribute: Any) -> None:
    with pytest.raises(ValueError, match=r"attribute must be.*'manager'; got"):
        PropagationCallback(attribute=attribute)


# -- the tape ------------------------------------------------------------------------------------


def test_what_was_recorded_between_batches_is_forgotten(pl: ModuleType) -> None:
    weights = []
    for leak in (False, True):

        def after(module: Any, *args: Any, leak: bool = leak) -> None:
            if leak:
                state = torch.get_rng_state()
                module.manager.append_loss(cost(roll(module)))
                torch.set_rng_state(state)

        torch.manual_seed(1)
        module = make_module(pl, on_train_batch_end=after, batches=3)
        fit(pl, module, PropagationCallback("LR"))
        weights.append(module.net.weight.detach().clone())
    assert torch.equal(*weights)


@pytest.mark.parametrize("kind", [ZeroDivisionError, KeyboardInterrupt])
def test_the_tape_is_cleared_after_an_exception(pl: ModuleType, kind: type) -> None:
    def step(module: Any, batch_idx: int) -> Tensor:
        module.manager.append_loss(cost(roll(module)))
        if batch_idx == 1:
            raise kind
        return module.manager.loss()

    module, callback = make_module(pl, step), PropagationCallback("TP")
    # Lightning turns Ctrl-C into an exit.
    with pytest.raises((kind, SystemExit)):
        fit(pl, module, callback)
    assert_usable(pl, module, callback)


def test_an_exception_in_the_backward_pass_leaves_the_manager_usable(pl: ModuleType) -> None:
    def step(module: Any, batch_idx: int) -> Tensor:
        module.manager.sample(Normal(module.net(torch.zeros(3, 2)), 0.1))  # of another size
        return good_step(module, batch_idx)

    module, callback = make_module(pl, step), PropagationCallback("LR")
    with pytest.raises(ValueError, match="one cost for each particle"):
        fit(pl, module, callback)
    assert_usable(pl, module, callback)


# -- misuse in training_step ---------------------------------------------------------------------


def record_and_return_something_else(module: Any, batch_idx: int) -> Tensor:
    return cost(module.net(roll(module).detach())).mean()


def record_and_return_nothing(module: Any, batch_idx: int) -> None:
    module.manager.append_loss(cost(roll(module)))


def forget_to_return_the_loss(module: Any, batch_idx: int) -> None:
    good_step(module, batch_idx)


def return_one_of_two_losses(module: Any, batch_idx: int) -> Tensor:
    good_step(module, batch_idx)
    return good_step(module, batch_idx)


def return_a_detached_loss(module: Any, batch_idx: int) -> Tensor:
    return good_step(module, batch_idx).detach()


def return_a_detached_loss_in_a_dict(module: Any, batch_idx: int) -> dict[str, Tensor]:
    return {"loss": good_step(module, batch_idx).detach()}


def add_the_loss_as_a_constant(module: Any, batch_idx: int) -> Tensor:
    return good_step(module, batch_idx).item() + module.net.weight.square().sum()


def average_over_particles(module: Any, batch_idx: int) -> Tensor:
    return module.manager.loss(cost(roll(module)).mean())


def keep_the_axes_of_the_state(module: Any, batch_idx: int) -> Tensor:
    return module.manager.loss(roll(module).square())


def diverge(module: Any, batch_idx: int) -> Tensor:
    return module.manager.loss(cost(roll(module)) * float("nan"))


def ask_for_a_second_loss(module: Any, batch_idx: int) -> Tensor:
    costs = cost(roll(module))
    return module.manager.loss(costs) + module.manager.loss(costs)


@pytest.mark.parametrize(
    ("step", "error", "message"),
    [
        (record_and_return_something_else, PropagationError, r"recorded 3 samples.*not return"),
        (record_and_return_nothing, PropagationError, r"recorded 4 samples or costs.*not return"),
        (forget_to_return_the_loss, PropagationError, r"1 of the losses.*never differentiated"),
        (return_one_of_two_losses, PropagationError, r"1 of the losses.*sum of all of them"),
        (return_a_detached_loss, PropagationError, r"Return the loss itself.*not its item\(\)"),
        (return_a_detached_loss_in_a_dict, PropagationError, r"1 of the losses.*detach\(\)"),
        (add_the_loss_as_a_constant, PropagationError, r"1 of the losses.*not its item\(\)"),
        (average_over_particles, ValueError, r"shape \[\]\. Do not average over particles"),
        (keep_the_axes_of_the_state, ValueError, r"one cost for each particle.*\[16, 2\]"),
        (diverge, ValueError, "costs must be finite.*nan"),
        (ask_for_a_second_loss, PropagationError, "once for each rollout"),
    ],
)
def test_misuse_is_named_and_leaves_the_manager_usable(
    pl: ModuleType, step: Step, error: type[Exception], message: str
) -> None:
    module, callback = make_module(pl, step), PropagationCallback("TP")
    with pytest.raises(error, match=message):
        fit(pl, module, callback)
    assert_usable(pl, module, callback)


def test_a_number_instead_of_a_loss_is_refused_by_lightning(pl: ModuleType) -> None:
    exceptions = importlib.import_module(f"{pl.__name__}.utilities.exceptions")
    module = make_module(pl, lambda module, _: good_step(module, _).item())
    callback = PropagationCallback("TP")
    with pytest.raises(exceptions.MisconfigurationException, match="must return a Tensor"):
        fit(pl, module, callback)
    assert_usable(pl, module, callback)


def test_with_manual_optimization_open_rollouts_are_refused(pl: ModuleType) -> None:
    module = make_module(pl, record_and_return_nothing, automatic_optimization=False)
    with pytest.raises(PropagationError, match="recorded 4 samples"):
        fit(pl, module, PropagationCallback("TP"))


def test_with_manual_optimization_a_loss_without_backward_is_warned_of_once(
    pl: ModuleType,
) -> None:
    """It may be meant: a line search, or a loss that waits for the next batch."""
    module = make_module(pl, forget_to_return_the_loss, batches=3, automatic_optimization=False)
    with pytest.warns(UserWarning, match="the losses") as caught:
        fit(pl, module, PropagationCallback("TP"))
    words = [str(warning.message) for warning in caught if "losses" in str(warning.message)]
    assert len(words) == 1
    assert "self.manager.loss(...), but 1 of the losses" in words[0]
    assert "self.manual_backward(loss)" in words[0]
    assert "self.manager.reset()" in words[0]


@pytest.mark.parametrize("on_purpose", [False, True])
def test_with_manual_optimization_nobody_is_warned_without_a_reason(
    pl: ModuleType, on_purpose: bool
) -> None:
    def step(module: Any, batch_idx: int) -> None:
        loss = good_step(module, batch_idx)
        if on_purpose:
            module.manager.reset()
        else:
            module.manual_backward(loss)

    module = make_module(pl, step, automatic_optimization=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*losses")
        fit(pl, module, PropagationCallback("TP"))


def test_a_batch_may_be_skipped_on_purpose(pl: ModuleType) -> None:
    def step(module: Any, batch_idx: int) -> Tensor | None:
        loss = good_step(module, batch_idx)
        if batch_idx == 1:
            module.manager.reset()
            return None
        return loss

    backward_passes: list[None] = []
    module = make_module(
        pl, step, batches=3, on_after_backward=lambda module: backward_passes.append(None)
    )
    fit(pl, module, PropagationCallback("TP"))
    assert len(backward_passes) == 2


def test_a_batch_without_rollout_is_none_of_our_business(pl: ModuleType) -> None:
    def step(module: Any, batch_idx: int) -> Tensor:
        with torch.no_grad():
            x = roll(module)
        return cost(module.net(x)).mean()

    trainer = fit(pl, make_module(pl, step), PropagationCallback("TP"))
    assert trainer.global_step == 2
    assert "propagation/cost" not in trainer.callback_metrics


def test_a_closure_may_be_called_several_times_in_a_batch(pl: ModuleType) -> None:
    def configure(module: Any) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(module.parameters(), lr=0.05, max_iter=3)

    module = make_module(pl, configure_optimizers=configure)
    before = module.net.weight.detach().clone()
    fit(pl, module, PropagationCallback("TP"))
    assert not torch.equal(before, module.net.weight)


# -- what is logged ------------------------------------------------------------------------------


def logged(pl: ModuleType, tmp_path: Path, module: Any, callback: Any) -> list[dict[str, float]]:
    """Return what the module's logger wrote, batch by batch."""
    logger = importlib.import_module(f"{pl.__name__}.loggers").CSVLogger(tmp_path)
    fit(pl, module, callback, logger=logger, log_every_n_steps=1)
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [
        {k: float(v) for k, v in row.items() if v and k.startswith("propagation/")} for row in rows
    ]


@pytest.mark.parametrize("name", ["RP", "LR", "TP", "GR"])
@pytest.mark.parametrize("manual", [False, True])
def test_the_cost_and_the_weight_of_lr_are_logged(
    pl: ModuleType, tmp_path: Path, name: str, manual: bool
) -> None:
    costs: list[float] = []

    def step(module: Any, batch_idx: int) -> Tensor | None:
        x = roll(module)
        costs.append(cost(x).mean().item())
        if not manual:
            return module.manager.loss(cost(x))
        module.manager.backward(cost(x))
        module.optimizers().step()
        return None

    module = make_module(pl, step, batches=3, automatic_optimization=not manual)
    rows = logged(pl, tmp_path, module, PropagationCallback(name))
    assert [row["propagation/cost"] for row in rows] == pytest.approx(costs, rel=1e-6)
    for row in rows:
        assert ("propagation/lr_weight" in row) == (name == "TP")
        assert 0.0 < row.get("propagation/lr_weight", 0.5) < 1.0


def test_a_batch_without_rollout_logs_nothing_of_the_batch_before(pl: ModuleType) -> None:
    names: list[tuple[int, str]] = []

    def log(module: Any, name: str, value: Any, **options: Any) -> None:
        names.append((module.trainer.fit_loop.batch_idx, name))

    def step(module: Any, batch_idx: int) -> Tensor:
        if batch_idx == 1:
            return module.net.weight.square().sum()
        return good_step(module, batch_idx)

    fit(pl, make_module(pl, step, batches=3, log=log), PropagationCallback("TP"))
    both = ("propagation/cost", "propagation/lr_weight")
    assert names == [(batch_idx, name) for batch_idx in (0, 2) for name in both]


def test_logging_may_be_switched_off(pl: ModuleType) -> None:
    trainer = fit(pl, make_module(pl), PropagationCallback("TP", log=False))
    assert not trainer.callback_metrics


# -- evaluation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("inference_mode", [True, False])
@pytest.mark.parametrize("name", ["RP", "TP", "GS"])
def test_validation_records_nothing(pl: ModuleType, name: str, inference_mode: bool) -> None:
    seen: list[tuple[int, int, bool]] = []

    def step(module: Any, batch_idx: int) -> Tensor:
        return module.manager.loss(roll(module), lossfunc=cost)

    def validate(module: Any, batch: Any, batch_idx: int) -> None:
        x = roll(module)
        value = module.manager.loss(x, lossfunc=cost)
        seen.append((module.manager.recorded, module.manager.size(), value.requires_grad))
        if name != "GS":  # which evaluates the cost on particles of its own
            assert torch.isclose(value, cost(x).mean())

    def loader(module: Any) -> DataLoader[int]:
        return DataLoader(range(2))

    module = make_module(pl, step, validation_step=validate, val_dataloader=loader, batches=4)
    before = module.net.weight.detach().clone()
    fit(
        pl,
        module,
        PropagationCallback(name),
        val_check_interval=2,
        inference_mode=inference_mode,
    )
    assert seen == [(0, 1, False)] * 6  # two in the sanity check, twice two in training
    assert not torch.equal(before, module.net.weight)


def test_costs_that_a_validation_step_left_are_not_counted_in_the_next(pl: ModuleType) -> None:
    found: list[tuple[float, float]] = []

    def validate(module: Any, batch: Any, batch_idx: int) -> None:
        costs = cost(roll(module))
        if batch_idx == 0:
            module.manager.append_loss(costs)
        else:
            found.append((module.manager.loss(costs).item(), costs.mean().item()))

    def loader(module: Any) -> DataLoader[int]:
        return DataLoader(range(2))

    module = make_module(pl, validation_step=validate, test_step=validate, predict_step=validate)
    for name in ("val", "test", "predict"):
        setattr(type(module), f"{name}_dataloader", loader)
    trainer = make_trainer(pl, PropagationCallback("LR"))
    trainer.validate(module, verbose=False)
    trainer.test(module, verbose=False)
    trainer.predict(module)
    assert len(found) == 3
    for value, expected in found:
        assert value == pytest.approx(expected, rel=1e-6)


# -- checkpoints and copies ----------------------------------------------------------------------


def test_checkpoints_are_written_read_and_resumed_from(pl: ModuleType, tmp_path: Path) -> None:
    saver = importlib.import_module(f"{pl.__name__}.callbacks").ModelCheckpoint(
        dirpath=tmp_path, monitor="propagation/cost", save_last=True, every_n_train_steps=1
    )
    module = make_module(pl)
    fit(pl, module, PropagationCallback("TP"), saver, enable_checkpointing=True)
    path = tmp_path / "last.ckpt"
    loaded = type(module).load_from_checkpoint(path, rate=0.01)
    assert loaded.hparams.rate == 0.01
    assert torch.equal(loaded.net.weight, module.net.weight)
    assert not hasattr(loaded, "manager")
    trainer = make_trainer(pl, PropagationCallback("LR"), max_epochs=2)
    trainer.fit(loaded, ckpt_path=path)
    assert trainer.global_step == 4
    assert isinstance(loaded.manager.default_propagator, LRProp)


def test_a_trained_module_can_be_copied_and_averaged(pl: ModuleType) -> None:
    averaging = importlib.import_module(f"{pl.__name__}.callbacks").StochasticWeightAveraging(
        swa_lrs=0.05, swa_epoch_start=1
    )
    module = make_module(pl)
    fit(pl, module, PropagationCallback("TP"), averaging, max_epochs=3)
    twin = copy.deepcopy(module)
    assert twin.manager is not module.manager
    for each in (module, twin):
        each.zero_grad()
        torch.manual_seed(5)
        good_step(each, 0).backward()
    assert torch.equal(twin.net.weight.grad, module.net.weight.grad)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("how", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_the_callback_can_be_copied_and_pickled(
    pl: ModuleType, how: Callable[[Any], Any], trained: bool
) -> None:
    callback = PropagationCallback("TP", attribute="manager", log=False)
    if trained:
        fit(pl, make_module(pl), callback)
    twin = how(callback)
    assert (twin.propagator, twin.attribute, twin.log_statistics) == ("TP", "manager", False)
    module = make_module(pl)
    fit(pl, module, twin)
    assert isinstance(module.manager.default_propagator, TotalProp)


# -- precision -----------------------------------------------------------------------------------


# Gaussian resampling and shaping draw noise of their own, which differs in double precision.
@pytest.mark.parametrize(
    ("precision", "name", "limit"),
    [("bf16-mixed", name, 0.05) for name in ("RP", "LR", "TP", "GR", "GS")]
    + [("64-true", name, 1e-5) for name in ("RP", "LR", "TP")],
)
def test_other_precisions_give_nearly_the_same_gradients(
    pl: ModuleType, precision: str, name: str, limit: float
) -> None:
    noise = torch.randn(3, 256, 2, dtype=torch.float64)

    def step(module: Any, batch_idx: int) -> Tensor:
        torch.manual_seed(2)
        x = torch.zeros(256, 2, dtype=module.net.weight.dtype)
        for given in noise:
            x = module.manager.sample(Given(x + module.net(x), 0.1, given))
        return module.manager.loss(x, lossfunc=cost)

    found = []
    for chosen in ("32-true", precision):
        kept: list[Tensor] = []

        def keep(module: Any, optimizer: Any, kept: list[Tensor] = kept) -> None:
            kept.extend(p.grad.double() for p in module.parameters())

        module = make_module(pl, step, batches=1, on_before_optimizer_step=keep)
        fit(pl, module, PropagationCallback(name), precision=chosen)
        found.append(torch.cat([g.flatten() for g in kept]))
    error = (found[0] - found[1]).norm() / found[0].norm()
    assert 0 < error < limit


@pytest.mark.parametrize("name", ["GR", "GS"])
def test_gaussians_are_fitted_in_32_bits_where_states_have_16(pl: ModuleType, name: str) -> None:
    def step(module: Any, batch_idx: int) -> Tensor:
        x = torch.zeros(256, 2, dtype=module.net.weight.dtype)
        for _ in range(3):
            x = module.manager.sample(Normal(x + module.net(x), 0.1))
            assert x.dtype == torch.bfloat16
        return module.manager.loss(x, lossfunc=cost)

    module = make_module(pl, step)
    before = module.net.weight.detach().clone()
    fit(pl, module, PropagationCallback(name), precision="bf16-true")
    assert torch.isfinite(module.net.weight).all()
    assert not torch.equal(before, module.net.weight.float())
