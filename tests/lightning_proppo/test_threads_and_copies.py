"""Models with managers that are copied, sent to other processes, and used by several threads.

And evaluations in the middle of training, which must not change what is trained.
"""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from multiprocessing.reduction import ForkingPickler
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.utils.data import DataLoader, Dataset

from lightning_proppo import PropagationCallback, PropagationManager
from lightning_proppo.propagators import LRProp, TotalProp, estimator_names

from ..given_noise import Given
from ..quiet import QUIET

P, HORIZON = 16, 4
NAMES = estimator_names()


class Model(nn.Module):
    """A policy with a manager, as a user's module has it."""

    def __init__(self, propagator: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(2, 2)
        self.manager = PropagationManager(propagator)

    def roll(self, seed: int = 1) -> Tensor:
        torch.manual_seed(seed)
        x = torch.zeros(P, 2)
        for _ in range(HORIZON):
            x = self.manager.sample(Normal(x + self.net(x).tanh(), 0.3))
        return x

    def given_loss(self, seed: int) -> Tensor:
        """Return a loss whose noise depends on the seed alone, whatever other threads do."""
        noise = torch.randn(HORIZON, P, 2, generator=torch.Generator().manual_seed(seed))
        x = torch.zeros(P, 2)
        for each in noise:
            x = self.manager.sample(Given(x + self.net(x).tanh(), 0.3, each))
            self.manager.append_loss(x, lossfunc=cost)
        return self.manager.loss()

    def gradients(self, loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, list(self.net.parameters())))


def cost(x: Tensor) -> Tensor:
    return (x - 1.0).square().sum(1)


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


# -- copies --------------------------------------------------------------------------------------


def saved(model: Model) -> Model:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved])
def test_a_copied_model_learns_by_itself(name: str, how: Callable[[Model], Model]) -> None:
    model = Model(name)
    x = model.roll()
    twin = how(model)
    assert (twin.manager.recorded, model.manager.recorded) == (0, HORIZON)
    expected = model.gradients(model.manager.loss(x, lossfunc=cost))
    assert_same(twin.gradients(twin.manager.loss(twin.roll(), lossfunc=cost)), expected)
    twin.manager.loss(twin.roll(), lossfunc=cost).backward()
    assert model.net.weight.grad is None
    assert twin.net.weight.grad is not None


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_weights_of_a_copy_are_computed_at_its_own_parameters(how: Callable[[Any], Any]) -> None:
    model = Model("TP")
    model.manager = PropagationManager(TotalProp(ivw_target=model.net))
    twin = how(model)
    assert twin.manager.default_propagator.default_forward_kwargs["ivw_target"] is twin.net
    losses = [each.manager.loss(each.roll(), lossfunc=cost) for each in (model, twin)]
    assert_same(*[m.gradients(loss) for m, loss in zip((model, twin), losses, strict=True)])


# -- threads -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["RP", "LR", "TP", "TPX"])
def test_managers_in_two_threads_do_not_meet(name: str) -> None:
    """The threads take turns within each rollout and each pass, at every switch of Python's."""
    # Made one after the other: parameters are drawn from the generator that all threads share.
    models = [Model(name) for _ in range(2)]
    expected = [
        [model.gradients(model.given_loss(10 * thread + i)) for i in range(8)]
        for thread, model in enumerate(models)
    ]
    barrier = threading.Barrier(2)

    def work(thread: int) -> list[list[Tensor]]:
        torch.set_num_threads(1)
        found = []
        for i in range(8):
            barrier.wait(60)
            found.append(models[thread].gradients(models[thread].given_loss(10 * thread + i)))
        return found

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(work, range(2)))
    for found, known in zip(results, expected, strict=True):
        for a, b in zip(found, known, strict=True):
            assert_same(a, b)


@pytest.mark.parametrize("name", ["LR", "TP"])
def test_two_threads_may_share_parameters_but_not_a_manager(name: str) -> None:
    model = Model(name)
    expected = [model.gradients(model.given_loss(i)) for i in range(8)]
    twins = [copy.copy(model) for _ in range(2)]

    def work(thread: int) -> list[list[Tensor]]:
        twins[thread].manager = PropagationManager(name)
        return [model.gradients(twins[thread].given_loss(i)) for i in range(8)]

    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(work, range(2)):
            for a, b in zip(found, expected, strict=True):
                assert_same(a, b)


@pytest.mark.parametrize("name", ["RP", "LR", "TP"])
def test_a_loss_may_be_differentiated_in_another_thread(name: str) -> None:
    model = Model(name)
    expected = model.gradients(model.given_loss(0))
    loss = model.given_loss(0)
    with ThreadPoolExecutor(1) as pool:
        assert_same(pool.submit(model.gradients, loss).result(), expected)
    assert model.manager.undifferentiated == 0


# -- evaluations ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_an_evaluation_before_and_amid_a_rollout_changes_no_gradient(
    name: str, mode: Callable[[], Any]
) -> None:
    """Nothing that is kept for later may be made in inference mode, which forbids its use."""
    model = Model(name)
    x = model.roll()
    expected = model.gradients(model.manager.loss(x, lossfunc=cost))
    model = Model(name)

    def evaluate() -> None:
        with mode(), torch.random.fork_rng():
            y = model.roll(seed=2)
            assert not y.requires_grad
            value = model.manager.loss(y, lossfunc=cost)
            assert bool(value.isfinite())

    evaluate()
    torch.manual_seed(1)
    x = torch.zeros(P, 2)
    for _ in range(HORIZON):
        x = model.manager.sample(Normal(x + model.net(x).tanh(), 0.3))
        evaluate()
    loss = model.manager.loss(x, lossfunc=cost)
    evaluate()
    assert_same(model.gradients(loss), expected)


@pytest.mark.parametrize("name", ["TP", "TP+MESH"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_quasi_random_noise_may_be_drawn_in_an_evaluation_first(
    name: str, mode: Callable[[], Any]
) -> None:
    found = []
    for evaluate in (False, True):
        model = Model(name)
        model.manager = PropagationManager(name, noise="quasi-random")
        if evaluate:
            with mode():
                model.manager.loss(model.roll(seed=2), lossfunc=cost)
        found.append(model.gradients(model.manager.loss(model.roll(), lossfunc=cost)))
    assert_same(*found)


@pytest.mark.parametrize("name", ["RP", "LR", "TP"])
def test_a_loss_may_be_differentiated_without_grad_mode(name: str) -> None:
    model = Model(name)
    expected = model.gradients(model.manager.loss(model.roll(), lossfunc=cost))
    loss = model.manager.loss(model.roll(), lossfunc=cost)
    with torch.no_grad():
        loss.backward()
    assert_same([p.grad for p in model.net.parameters() if p.grad is not None], expected)


# -- Lightning -----------------------------------------------------------------------------------


class Starts(Dataset[Tensor]):
    """States to start from; with a model, what it makes of them in an evaluation."""

    def __init__(self, model: Any = None) -> None:
        self.model = model

    def __len__(self) -> int:
        return 4 * P

    def __getitem__(self, index: int) -> Tensor:
        x = torch.full((2,), index / 10)
        if self.model is None:
            return x
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(index)
            manager = self.model.manager
            y = manager.sample(Normal(self.model.net(x[None]), 0.1))
            manager.append_loss(cost(y))
            assert bool(manager.loss().isfinite())
            return y[0]


def make_module(pl: ModuleType, workers: int = 0, simulating: bool = False, **hooks: Any) -> Any:
    """Return a module of the package's own class, always with the same weights."""

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Linear(2, 2)

        def loss(self, x: Tensor) -> Tensor:
            for _ in range(HORIZON):
                x = self.manager.sample(Normal(x + self.net(x).tanh(), 0.3))
            return self.manager.loss(cost(x))

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return self.loss(batch)

        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            assert not self.loss(batch).requires_grad

        def train_dataloader(self) -> DataLoader[Tensor]:
            data = Starts(self if simulating else None)
            # Other ways to start them, Python 3.14's usual one too, cannot pickle this class.
            how = "fork" if workers else None
            return DataLoader(data, P, num_workers=workers, multiprocessing_context=how)

        def val_dataloader(self) -> DataLoader[Tensor]:
            return DataLoader(Starts(), batch_size=P)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    for name, hook in hooks.items():
        setattr(Module, name, hook)
    return Module()


def make_trainer(pl: ModuleType, *callbacks: Any, **options: Any) -> Any:
    return pl.Trainer(
        **QUIET,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
        **{"max_epochs": 2, "limit_val_batches": 0, **options},
    )


def trained(pl: ModuleType, module: Any, name: str = "TP", **options: Any) -> list[Tensor]:
    """Return the weights after training, which draws the same noise every time."""
    torch.manual_seed(3)
    make_trainer(pl, PropagationCallback(name), **options).fit(module)
    return [p.detach().clone() for p in module.parameters()]


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")
def test_workers_of_a_data_loader_change_nothing(pl: ModuleType) -> None:
    assert_same(trained(pl, make_module(pl, workers=2)), trained(pl, make_module(pl)))


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")
def test_workers_of_a_data_loader_may_evaluate_copies_of_the_model(pl: ModuleType) -> None:
    found = trained(pl, make_module(pl, workers=2, simulating=True))
    assert all(bool(weight.isfinite().all()) for weight in found)
    # States to start from that a model has made are others.
    assert not torch.equal(found[0], trained(pl, make_module(pl))[0])


def test_a_worker_may_be_sent_a_model_in_the_middle_of_a_rollout() -> None:
    """As where workers are spawned: by way of the pickler of their processes."""
    model = Model("TP")
    expected = model.gradients(model.manager.loss(model.roll(), lossfunc=cost))
    x = model.roll()
    sent = ForkingPickler.loads(ForkingPickler.dumps(Starts(model)))
    assert sent.model.manager.recorded == 0
    assert torch.equal(sent[3], Starts(model)[3])
    assert_same(model.gradients(model.manager.loss(x, lossfunc=cost)), expected)


@pytest.mark.parametrize("inference_mode", [True, False])
@pytest.mark.parametrize("name", ["RP", "LR", "TP"])
def test_validation_in_the_middle_of_training_changes_nothing(
    pl: ModuleType, name: str, inference_mode: bool
) -> None:
    expected = trained(pl, make_module(pl), name)
    found = trained(
        pl,
        make_module(pl),
        name,
        limit_val_batches=1.0,
        val_check_interval=1,
        inference_mode=inference_mode,
    )
    assert_same(found, expected)


@pytest.mark.parametrize("when", ["on_train_batch_end", "on_train_epoch_end"])
def test_another_trainer_may_validate_in_the_middle_of_training(pl: ModuleType, when: str) -> None:
    """Its own callback gives the module another manager, but only for as long as it validates."""
    expected = trained(pl, make_module(pl))

    def validate(module: Any, *arguments: Any) -> None:
        trainer = module.trainer
        other = make_trainer(pl, PropagationCallback("LR"), limit_val_batches=1.0)
        other.validate(module, verbose=False)
        module.trainer = trainer

    module = make_module(pl, **{when: validate})
    assert_same(trained(pl, module), expected)
    assert not isinstance(module.manager.default_propagator, LRProp)


@pytest.mark.parametrize("fails", [False, True])
def test_a_manager_is_given_back_after_an_evaluation(pl: ModuleType, fails: bool) -> None:
    def validation_step(module: Any, batch: Tensor, batch_idx: int) -> None:
        assert isinstance(module.manager.default_propagator, LRProp)
        if fails:
            raise ZeroDivisionError

    module = make_module(pl, validation_step=validation_step)
    trained(pl, module, "TP")
    manager = module.manager
    other = make_trainer(pl, PropagationCallback("LR"), limit_val_batches=1.0)
    with pytest.raises(ZeroDivisionError) if fails else nullcontext():
        other.validate(module, verbose=False)
    assert module.manager is manager
    trained(pl, module, "LR")  # of two trainings, the last decides
    assert module.manager is not manager


def test_validate_between_two_fits_changes_nothing(pl: ModuleType) -> None:
    found = []
    for validate in (False, True):
        module = make_module(pl)
        callback = PropagationCallback("TP")
        torch.manual_seed(3)
        make_trainer(pl, callback, max_epochs=1).fit(module)
        if validate:
            make_trainer(pl, callback, limit_val_batches=1.0).validate(module, verbose=False)
        make_trainer(pl, callback, max_epochs=1).fit(module)
        found.append([p.detach().clone() for p in module.parameters()])
    assert_same(*found)
