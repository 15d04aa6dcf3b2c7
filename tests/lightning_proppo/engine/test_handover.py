"""Every way of differentiating a rollout's loss gives the same gradients, and right ones.

The reference is a plain loop with ``loss.backward()``. That its gradients are right in expectation
is shown elsewhere; here a reparameterized rollout is held to PyTorch's own back-propagation.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional
from torch.utils.data import DataLoader

from lightning_proppo import PropagationCallback, PropagationError, PropagationManager
from lightning_proppo.installed_lightning import pl
from lightning_proppo.propagators import LRProp, Propagator, RPProp, TotalProp

from ...quiet import QUIET

NAMES = ["RP", "LR", "TP", "GR", "GS"]
PARTICLES, HORIZON, SEED = 32, 5, 7
ROUNDING = 1e-10


class Policy(nn.Module):
    """A small network, a learned noise, and a parameter that no rollout uses."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))
        self.log_scale = nn.Parameter(torch.tensor([-1.0, -1.5]))
        self.unused = nn.Parameter(torch.ones(2))
        self.to(dtype)

    def forward(self, x: Tensor) -> Normal:
        return Normal(x + 0.5 * self.net(x), self.log_scale.exp().expand_as(x))

    def used(self) -> list[nn.Parameter]:
        return [p for p in self.parameters() if p is not self.unused]


def cost(x: Tensor) -> Tensor:
    return 1.0 - (-(x - 1.0).square().sum(1)).exp()


def start(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.linspace(-1, 1, 2 * PARTICLES, dtype=dtype).reshape(PARTICLES, 2)


def roll(
    manager: PropagationManager, policy: Policy | Callable[[Tensor], Normal], seed: int = SEED
) -> Tensor:
    """Record a rollout with a cost at each step but the last; return the last state."""
    torch.manual_seed(seed)
    x = start()
    for step in range(HORIZON):
        x = manager.sample(policy(x))
        if step < HORIZON - 1:
            manager.append_loss(x, lossfunc=cost)
    return x


def make_loss(manager: PropagationManager, policy: Any, seed: int = SEED) -> Tensor:
    return manager.loss(roll(manager, policy, seed), lossfunc=cost)


def gradients(policy: Policy) -> list[Tensor]:
    assert policy.unused.grad is None
    found = [p.grad for p in policy.used()]
    assert all(gradient is not None for gradient in found)
    return [gradient.clone() for gradient in found if gradient is not None]


def reference(name: str | Propagator, seed: int = SEED) -> list[Tensor]:
    policy = Policy()
    make_loss(PropagationManager(name), policy, seed).backward()
    return gradients(policy)


def assert_same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert b.norm() > 0
        assert (a - b).norm() <= ROUNDING * b.norm()


def quiet_trainer(name: str, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        **QUIET,
        max_epochs=1,
        callbacks=[PropagationCallback(name)],
        **options,
    )


class Learner(pl.LightningModule):
    """Keeps the gradients of each optimizer step; the noise of a batch is given by its number."""

    def __init__(self, batches: int = 1, automatic: bool = True, rate: float = 0.0) -> None:
        super().__init__()
        self.policy = Policy()
        self.batches = batches
        self.automatic_optimization = automatic
        self.rate = rate
        self.kept: list[list[Tensor]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        loss = make_loss(self.manager, self.policy, SEED + batch_idx)
        if self.automatic_optimization:
            return loss
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return None

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.kept.append(gradients(self.policy))

    def train_dataloader(self) -> DataLoader[int]:
        return DataLoader(range(self.batches))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.rate)


# -- the same from everywhere --------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_manager_backward_leaves_what_loss_backward_leaves(name: str) -> None:
    policy = Policy()
    manager = PropagationManager(name)
    x = roll(manager, policy)
    if name == "GS":  # which has to be given the state, not its cost
        manager.append_loss(x, lossfunc=cost)
        manager.backward()
    else:
        manager.backward(cost(x))
    assert_same(gradients(policy), reference(name))


@pytest.mark.parametrize("name", NAMES)
def test_manager_backward_adds_to_gradients_as_backward_does(name: str) -> None:
    policy = Policy()
    manager = PropagationManager(name)
    for _ in range(2):
        x = roll(manager, policy)
        manager.append_loss(x, lossfunc=cost)
        manager.backward()
    assert_same(gradients(policy), [2 * g for g in reference(name)])


@pytest.mark.parametrize("name", NAMES)
def test_autograd_grad_returns_what_backward_leaves(name: str) -> None:
    policy = Policy()
    loss = make_loss(PropagationManager(name), policy)
    assert_same(torch.autograd.grad(loss, policy.used()), reference(name))
    assert all(p.grad is None for p in policy.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_autograd_grad_may_be_asked_for_some_parameters_only(name: str) -> None:
    policy = Policy()
    loss = make_loss(PropagationManager(name), policy)
    found = torch.autograd.grad(loss, [policy.log_scale, policy.unused], allow_unused=True)
    assert found[1] is None
    assert_same(found[:1], reference(name)[:1])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("automatic", [True, False], ids=["automatic", "manual"])
def test_lightning_gives_the_gradients_of_a_plain_loop(name: str, automatic: bool) -> None:
    learner = Learner(batches=2, automatic=automatic)
    quiet_trainer(name).fit(learner)
    assert len(learner.kept) == 2
    for batch_idx, found in enumerate(learner.kept):
        assert_same(found, reference(name, SEED + batch_idx))


@pytest.mark.parametrize("name", NAMES)
def test_lightning_moves_the_parameters_by_the_gradient(name: str) -> None:
    learner = Learner(rate=0.5)
    before = [p.detach().clone() for p in learner.policy.used()]
    quiet_trainer(name).fit(learner)
    moved = [(b - p.detach()) / 0.5 for b, p in zip(before, learner.policy.used(), strict=True)]
    assert_same(moved, reference(name))


@pytest.mark.parametrize("name", NAMES)
def test_lightning_clips_the_gradient_of_the_whole_rollout(name: str) -> None:
    learner = Learner(rate=1.0)
    before = [p.detach().clone() for p in learner.policy.used()]
    quiet_trainer(name, gradient_clip_val=1e-3).fit(learner)
    moved = [b - p.detach() for b, p in zip(before, learner.policy.used(), strict=True)]
    expected = reference(name)
    whole = torch.cat([g.flatten() for g in expected]).norm()
    # PyTorch adds 1e-6 to the norm that it divides by.
    assert_same(moved, [1e-3 * g / (whole + 1e-6) for g in expected])


@pytest.mark.parametrize("name", NAMES)
def test_four_accumulated_batches_give_the_mean_of_their_gradients(name: str) -> None:
    learner = Learner(batches=4)
    quiet_trainer(name, accumulate_grad_batches=4).fit(learner)
    singles = [reference(name, SEED + batch_idx) for batch_idx in range(4)]
    mean = [torch.stack(every).mean(0) for every in zip(*singles, strict=True)]
    assert len(learner.kept) == 1
    assert_same(learner.kept[0], mean)


@pytest.mark.parametrize("package", ["lightning_fabric", "lightning.fabric"])
@pytest.mark.parametrize("name", NAMES)
def test_fabric_gives_the_gradients_of_a_plain_loop(name: str, package: str) -> None:
    fabric = pytest.importorskip(package).Fabric(accelerator="cpu", devices=1)
    policy = Policy()
    wrapped, optimizer = fabric.setup(policy, torch.optim.SGD(policy.parameters(), lr=0.0))
    loss = make_loss(PropagationManager(name), wrapped)
    fabric.backward(loss)
    assert_same(gradients(policy), reference(name))
    optimizer.step()


@pytest.mark.parametrize("name", NAMES)
def test_a_factor_before_the_loss_multiplies_its_gradient(name: str) -> None:
    policy = Policy()
    (make_loss(PropagationManager(name), policy) * 1024).backward()
    # A power of two loses nothing to rounding.
    for a, b in zip(gradients(policy), reference(name), strict=True):
        assert torch.equal(a / 1024, b)


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_scaler_scales_and_unscales(name: str) -> None:
    policy = Policy()
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(make_loss(PropagationManager(name), policy)).backward()
    assert scaler.get_scale() == 65536.0
    scaler.unscale_(optimizer)
    assert_same(gradients(policy), reference(name))


# -- against plain back-propagation --------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("at_each_step", [False, True], ids=["last step", "each step"])
def test_attached_rp_is_exactly_plain_back_propagation(
    dtype: torch.dtype, at_each_step: bool
) -> None:
    policy = Policy(dtype)
    found: list[list[Tensor]] = []
    for manager in (None, PropagationManager("RP")):
        torch.manual_seed(SEED)
        x, costs = start(dtype), []
        for step in range(HORIZON):
            x = policy(x).rsample() if manager is None else manager.sample(policy(x))
            if at_each_step or step == HORIZON - 1:
                costs.append(cost(x))
        if manager is None:
            loss = torch.stack(costs).sum(0).mean()
        else:
            for value in costs:
                manager.append_loss(value)
            loss = manager.loss()
        policy.zero_grad()
        loss.backward()
        found.append(gradients(policy))
    for plain, ours in zip(*found, strict=True):
        assert torch.equal(plain, ours)


def test_detached_rp_is_plain_back_propagation_to_rounding() -> None:
    assert_same(reference(RPProp()), reference("RP"))


def test_attached_rp_passes_once_over_its_graph_whatever_the_number_of_costs() -> None:
    policy = Policy()
    manager = PropagationManager("RP")
    calls: list[int] = []
    x = start()
    for step in range(20):
        x = manager.sample(policy(x))
        x.register_hook(lambda gradient, step=step: calls.append(step))
        manager.append_loss(cost(x))
    manager.loss().backward()
    assert calls == list(reversed(range(20)))


SPARSE: dict[str, Callable[[bool], Callable[[nn.Parameter, Tensor], Tensor]]] = {
    "embedding": lambda sparse: lambda w, rows: functional.embedding(rows, w, sparse=sparse),
    "scaled": lambda sparse: lambda w, rows: functional.embedding(rows, 2 * w, sparse=sparse),
    "bag, one by one": lambda sparse: (
        lambda w, rows: functional.embedding_bag(rows[:, None], w, sparse=sparse, mode="sum")
    ),
    "gather, one by one": lambda sparse: (
        lambda w, rows: w.gather(0, rows[:, None].expand(-1, 2), sparse_grad=sparse)
    ),
}


@pytest.mark.filterwarnings("ignore:there is no rule for per-particle gradients")
@pytest.mark.parametrize("kind", SPARSE)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in ["LR", "GR", "GS", "TP", "TPX", "TP+MESH"]),
        ("TP", {"weighting": "covariance"}),
        ("TP", {"weighting": "cross-fitted"}),
        ("TP", {"k_interval": 2}),
    ],
)
def test_gradients_that_are_sparse_stay_so(name: str, options: Any, kind: str) -> None:
    found = []
    rows = torch.arange(PARTICLES) % 3
    for sparse in (False, True):
        look_up = SPARSE[kind](sparse)
        table = nn.Parameter(torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(4, 2))
        scale = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
        manager = PropagationManager(name, **options)
        torch.manual_seed(SEED)
        x = torch.zeros(PARTICLES, 2, dtype=torch.float64)
        for step in range(3):
            loc = x + look_up(table, (rows + step) % 3)
            x = manager.sample(Normal(loc, scale.expand_as(loc)))
        (3 * manager.loss(cost(x))).backward()
        gradient = table.grad
        assert gradient is not None
        assert gradient.is_sparse == sparse
        found.append([gradient.to_dense() if sparse else gradient, scale.grad])
    assert_same(*found)


# -- several rollouts, several terms -------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("first", [0, 1])
def test_two_rollouts_may_be_open_before_either_is_differentiated(name: str, first: int) -> None:
    policy = Policy()
    manager = PropagationManager(name)
    losses = [make_loss(manager, policy, SEED + k) for k in range(2)]
    for k in (first, 1 - first):
        policy.zero_grad()
        losses[k].backward()
        assert_same(gradients(policy), reference(name, SEED + k))


@pytest.mark.parametrize("name", NAMES)
def test_a_rollout_may_be_recorded_between_a_loss_and_its_backward(name: str) -> None:
    policy = Policy()
    manager = PropagationManager(name)
    loss = make_loss(manager, policy)
    x = roll(manager, policy, SEED + 1)
    with torch.random.fork_rng():  # shaped losses draw too
        loss.backward()
        assert_same(gradients(policy), reference(name))
    policy.zero_grad()
    manager.loss(x, lossfunc=cost).backward()
    assert_same(gradients(policy), reference(name, SEED + 1))


@pytest.mark.parametrize("name", NAMES)
def test_a_weighted_sum_of_losses_has_the_sum_of_their_gradients(name: str) -> None:
    policy = Policy()
    manager = PropagationManager(name)
    losses = [make_loss(manager, policy, SEED + k) for k in range(2)]
    (losses[0] + 3 * losses[1]).backward()
    a, b = reference(name), reference(name, SEED + 1)
    assert_same(gradients(policy), [u + 3 * v for u, v in zip(a, b, strict=True)])


def test_losses_of_two_managers_may_be_added() -> None:
    policy = Policy()
    losses = [make_loss(PropagationManager(name), policy) for name in ("RP", "LR")]
    torch.stack(losses).mean().backward()
    a, b = reference("RP"), reference("LR")
    assert_same(gradients(policy), [(u + v) / 2 for u, v in zip(a, b, strict=True)])


@pytest.mark.parametrize("name", NAMES)
def test_an_ordinary_term_on_the_parameters_adds_its_gradient(name: str) -> None:
    policy = Policy()
    loss = make_loss(PropagationManager(name), policy)
    penalty = sum((p.square().sum() for p in policy.used()), torch.zeros(()))
    (loss + 0.1 * penalty).backward()
    expected = [g + 0.2 * p.detach() for g, p in zip(reference(name), policy.used(), strict=True)]
    assert_same(gradients(policy), expected)


@pytest.mark.parametrize("early", [False, True])
def test_an_ordinary_term_on_samples_adds_its_gradient_with_attached_rp(early: bool) -> None:
    policy = Policy()
    manager = PropagationManager("RP")
    x = roll(manager, policy)
    if early:
        term = x.sin().mean()
        loss = manager.loss(cost(x))
    else:
        loss = manager.loss(cost(x))
        term = x.sin().mean()
    (loss + term).backward()
    found = gradients(policy)
    policy.zero_grad()
    x = roll(manager, policy)
    manager.loss(cost(x) + x.sin().mean(1)).backward()
    assert_same(found, gradients(policy))


@pytest.mark.parametrize("propagator", ["TP", "GR", RPProp()], ids=["TP", "GR", "detached RP"])
@pytest.mark.parametrize("order", ["together", "before", "after"])
def test_a_term_beside_the_loss_that_ends_at_a_sample_is_refused(
    propagator: str | Propagator, order: str
) -> None:
    policy = Policy()
    manager = PropagationManager(propagator)
    x = roll(manager, policy)
    loss = manager.loss(cost(x))
    term = x.sin().mean()
    if order == "after":
        loss.backward()
    with pytest.raises(PropagationError, match=r"beside the rollout's loss.*\[32, 2\].*detach"):
        (loss + term if order == "together" else term).backward()
    if order == "before":  # and what was right stays so
        loss.backward()
    if order != "together":
        assert_same(gradients(policy), reference(propagator))


def test_derivatives_with_respect_to_a_sample_may_be_taken_on_the_way() -> None:
    """They are asked for, so nothing is lost; and the pass must not find them in ``.grad``."""
    policy = Policy()
    manager = PropagationManager("TP")
    x = roll(manager, policy)
    (slope,) = torch.autograd.grad(x.sin().sum(), x)
    assert torch.equal(slope, x.detach().cos())
    manager.loss(cost(x)).backward()
    assert_same(gradients(policy), reference("TP"))


# -- twice, and not at all -----------------------------------------------------------------------


@pytest.mark.parametrize("name", [*NAMES, "TP+GS"])
def test_a_kept_graph_may_be_differentiated_again_and_again(name: str) -> None:
    policy = Policy()
    loss = make_loss(PropagationManager(name), policy)
    expected = reference(name)
    for retain in (True, True, False):
        policy.zero_grad()
        loss.backward(retain_graph=retain)
        for a, b in zip(gradients(policy), expected, strict=True):
            assert torch.equal(a, b)
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        loss.backward()


@pytest.mark.parametrize("name", NAMES)
def test_a_graph_that_is_not_kept_is_differentiated_once(name: str) -> None:
    policy = Policy()
    manager = PropagationManager(name)
    loss = make_loss(manager, policy)
    loss.backward()
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        loss.backward()
    policy.zero_grad()
    make_loss(manager, policy).backward()
    assert_same(gradients(policy), reference(name))


def penalized(name: str) -> list[Tensor]:
    policy = Policy()
    loss = make_loss(PropagationManager(name), policy)
    found = torch.autograd.grad(loss, policy.used(), create_graph=True)
    assert_same([g.detach() for g in found], reference(name))
    (loss + torch.stack([g.square().sum() for g in found]).sum()).backward()
    return gradients(policy)


def test_second_derivatives_are_refused() -> None:
    with pytest.raises(PropagationError, match="cannot be differentiated again"):
        penalized("TP")


def test_second_derivatives_of_what_is_left_to_pytorch() -> None:
    policy = Policy()
    torch.manual_seed(SEED)
    x, loss = start(), torch.zeros((), dtype=torch.float64)
    for _ in range(HORIZON):
        x = policy(x).rsample()
        loss = loss + cost(x).mean()
    found = torch.autograd.grad(loss, policy.used(), create_graph=True)
    (loss + torch.stack([g.square().sum() for g in found]).sum()).backward()
    assert_same(penalized("RP"), gradients(policy))


def test_backward_without_a_rollout_is_refused() -> None:
    policy = Policy()
    manager = PropagationManager("TP")
    with pytest.raises(PropagationError, match="nothing was recorded"):
        manager.backward()
    manager.backward(cost(roll(manager, policy)))
    with pytest.raises(PropagationError, match="nothing was recorded"):
        manager.backward()
    assert_same(gradients(policy), reference("TP"))


# -- parameters ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*(n for n in NAMES if n != "TP"), "TP at the node"])
def test_a_frozen_parameter_gets_no_gradient_and_changes_no_other(name: str) -> None:
    # TP's default weights are compared at the parameters that learn, so they would change.
    propagator = TotalProp(ivw_target="node") if name == "TP at the node" else name
    expected = reference(propagator)
    policy = Policy()
    frozen = policy.net[0].weight
    frozen.requires_grad_(False)
    make_loss(PropagationManager(propagator), policy).backward()
    assert frozen.grad is None
    kept = [(p, g) for p, g in zip(policy.used(), expected, strict=True) if p is not frozen]
    assert_same([p.grad for p, _ in kept], [g for _, g in kept])


def first_layer(policy: Policy) -> list[Tensor]:
    return list(policy.net[0].parameters())


@pytest.mark.parametrize("frozen", [first_layer, Policy.used], ids=["some", "all"])
@pytest.mark.parametrize("target", [*NAMES, "TPX", "TP+MESH", "BIW", first_layer, Policy.used])
def test_a_parameter_frozen_between_the_loss_and_its_backward_counts_as_frozen_before(
    target: Any, frozen: Callable[[Policy], list[Tensor]]
) -> None:
    found = []
    for early in (True, False):
        policy = Policy()
        idle = torch.ones(2, dtype=torch.float64, requires_grad=True)
        for p in frozen(policy) if early else []:
            p.requires_grad_(False)
        propagator = target
        if not isinstance(target, str):
            learning = [p for p in target(policy) if p.requires_grad]
            propagator = TotalProp(ivw_target=learning or "parameters")
        manager = PropagationManager(propagator)
        x = roll(manager, lambda x, policy=policy, idle=idle: policy(x + 1e-3 * idle))
        loss = manager.loss(x, lossfunc=cost)
        for p in frozen(policy):
            p.requires_grad_(False)
        (3 * loss).backward()
        assert all(p.grad is None for p in frozen(policy))
        kept = [idle, *(p for p in policy.used() if p.requires_grad)]
        found.append([p.grad for p in kept if p.grad is not None])
        assert len(found[-1]) == len(kept)
    assert_same(*found)


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_without_parameters_is_a_number(name: str) -> None:
    policy = Policy().requires_grad_(False)
    manager = PropagationManager(name)
    # Attached RP's costs have a graph only where something needs a gradient.
    if name == "RP":
        with pytest.raises(PropagationError, match="no graph"):
            make_loss(manager, policy)
    else:
        loss = make_loss(manager, policy)
        assert not loss.requires_grad
    assert manager.undifferentiated == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", ["loss", "manager", "grad"])
def test_hooks_of_a_parameter_fire_once_with_its_whole_gradient(name: str, way: str) -> None:
    policy = Policy()
    fired: dict[int, list[Tensor]] = {}
    accumulated: list[int] = []
    for k, p in enumerate(policy.parameters()):
        p.register_hook(lambda g, k=k: fired.setdefault(k, []).append(g.clone()))
        p.register_post_accumulate_grad_hook(lambda p, k=k: accumulated.append(k))
    manager = PropagationManager(name)
    x = roll(manager, policy)
    if way == "manager":
        manager.append_loss(x, lossfunc=cost)
        manager.backward()
    else:
        loss = manager.loss(x, lossfunc=cost)
        if way == "loss":
            loss.backward()
        else:
            torch.autograd.grad(loss, policy.used())
    indices = [k for k, p in enumerate(policy.parameters()) if p is not policy.unused]
    assert sorted(fired) == indices
    assert all(len(calls) == 1 for calls in fired.values())
    assert_same([fired[k][0] for k in indices], reference(name))
    assert sorted(accumulated) == ([] if way == "grad" else indices)


@pytest.mark.parametrize("name", NAMES)
def test_a_hook_may_change_the_gradient(name: str) -> None:
    policy = Policy()
    for p in policy.used():
        p.register_hook(lambda g: 2 * g)
    make_loss(PropagationManager(name), policy).backward()
    assert_same(gradients(policy), [2 * g for g in reference(name)])


# -- hooks on samples ----------------------------------------------------------------------------


def samples_and_gradients(
    propagator: Any, prepare: Callable[[Tensor], Any], factor: float = 3.0, way: str = "loss"
) -> tuple[list[Tensor | None], list[Tensor]]:
    """Return samples' ``.grad``, and parameters' gradients; ``prepare`` gets the third sample."""
    policy = Policy()
    manager = PropagationManager(propagator)
    torch.manual_seed(SEED)
    x = start()
    samples: list[Tensor] = []
    for step in range(HORIZON):
        x = manager.sample(policy(x))
        x.retain_grad()
        samples.append(x)
        if step == 2:
            prepare(x)
        manager.append_loss(x, lossfunc=cost)  # the cost and the next sample reach it
    if way == "manager":
        manager.backward()
    else:
        loss = factor * manager.loss()
        loss.backward(retain_graph=way == "twice")
        if way == "twice":
            loss.backward()
    return [sample.grad for sample in samples], gradients(policy)


def clip(gradient: Tensor) -> Tensor:
    return gradient.clamp(-0.01, 0.01)


@pytest.mark.parametrize("factor", [3.0, 0.0])
def test_a_sample_s_hook_sees_and_changes_what_it_does_in_plain_pytorch(factor: float) -> None:
    found = []
    for propagator in ("RP", RPProp()):
        seen: list[Tensor] = []

        def prepare(x: Tensor, seen: list[Tensor] = seen) -> None:
            x.register_hook(lambda gradient: seen.append(gradient.clone()))
            x.register_hook(clip)
            x.register_hook(lambda gradient: seen.append(gradient.clone()))

        samples, parameters = samples_and_gradients(propagator, prepare, factor)
        assert len(seen) == 2
        assert torch.equal(clip(seen[0]), seen[1])
        assert torch.equal(seen[0], seen[1]) == (factor == 0)
        found.append([*seen, *samples, *parameters])
    for plain, ours in zip(*found, strict=True):
        assert (plain - ours).norm() <= ROUNDING * plain.norm()


@pytest.mark.parametrize("way", ["loss", "manager", "twice"])
@pytest.mark.parametrize("name", ["TP", "TPX", "TP+MESH", "GR"])
def test_a_sample_s_hook_is_called_once_a_pass_with_its_whole_cotangent(
    name: str, way: str
) -> None:
    seen: list[Tensor] = []
    passes = 2 if way == "twice" else 1
    plain, expected = samples_and_gradients(name, lambda x: None, way=way)
    found, same = samples_and_gradients(
        name, lambda x: x.register_hook(lambda gradient: seen.append(gradient.clone())), way=way
    )
    assert len(seen) == passes
    assert plain[2] is not None
    assert_same([passes * gradient for gradient in seen], [plain[2]] * passes)
    assert_same([found[2]], [plain[2]])
    assert_same(same, expected)


@pytest.mark.parametrize("name", ["RP", "TP", "TPX", "TP+MESH", "GR"])
def test_a_sample_whose_hook_returns_zeros_passes_nothing_on(name: str) -> None:
    samples, _ = samples_and_gradients(
        name, lambda x: x.register_hook(lambda gradient: torch.zeros_like(gradient))
    )
    assert samples[2] is not None
    assert not samples[2].any()
    if name in ("RP", "GR"):  # nothing but cotangents goes further back
        alone, _ = samples_and_gradients(name, lambda x: None)
        assert not any(torch.equal(a, b) for a, b in zip(samples[:2], alone[:2], strict=True))


def test_a_hook_after_accumulation_is_called_with_the_sample() -> None:
    seen: list[Tensor] = []
    samples, _ = samples_and_gradients(
        "TP", lambda x: x.register_post_accumulate_grad_hook(lambda x: seen.append(x.grad))
    )
    assert_same(seen, [samples[2]])


def test_a_hook_that_was_removed_is_not_called() -> None:
    seen: list[Tensor] = []
    samples_and_gradients("TP", lambda x: x.register_hook(seen.append).remove())
    assert not seen


@pytest.mark.parametrize("passes", [1, 2])
def test_samples_keep_the_gradients_that_retain_grad_keeps(passes: int) -> None:
    way = "twice" if passes == 2 else "loss"
    plain, _ = samples_and_gradients("RP", lambda x: None, way=way)
    ours, _ = samples_and_gradients(RPProp(), lambda x: None, way=way)
    assert_same(ours, plain)


# -- what is reached in the backward pass --------------------------------------------------------


def test_a_parameter_whose_samples_cost_nothing_has_no_gradient() -> None:
    theta, idle = (torch.ones(1, dtype=torch.float64, requires_grad=True) for _ in range(2))
    manager = PropagationManager("LR")
    x = manager.sample(Normal(torch.zeros(8, 1, dtype=torch.float64) + theta, 0.1))
    manager.append_loss(x.square())
    manager.sample(Normal(x + idle, 0.1))  # after the last cost
    manager.loss().backward()
    assert theta.grad is not None
    assert idle.grad is None


class Late(Propagator):
    """Adds to the gradient a term that it computes in the backward pass only."""

    def __init__(self, parameter: Tensor, announced: bool) -> None:
        super().__init__()
        self.parameter = parameter
        self.announced = announced

    def forward_impl(self, x: Any, node: Any = None) -> Any:
        return {"output": x, "parameters": [self.parameter] if self.announced else []}

    def backward_impl(self, node: Any, message: Any) -> Any:
        made = 2 * self.parameter
        return {"outputs": made, "grads": torch.ones_like(made)}


@pytest.mark.parametrize("way", ["announced", "manager.backward"])
def test_a_parameter_that_only_the_backward_pass_reaches_gets_its_gradient(way: str) -> None:
    policy = Policy()
    late = torch.ones(3, requires_grad=True)
    manager = PropagationManager("LR")
    manager.forward(None, local_propagator=Late(late, announced=way == "announced"))
    x = roll(manager, policy)
    if way == "announced":
        (3 * manager.loss(cost(x))).backward()
        assert_same([late.grad], [torch.full((3,), 6.0)])
    else:
        manager.backward(cost(x))
        assert_same([late.grad], [torch.full((3,), 2.0)])


def test_a_parameter_that_is_not_announced_is_refused_where_its_gradient_would_be_lost() -> None:
    policy = Policy()
    late = torch.ones(3, requires_grad=True)
    manager = PropagationManager("LR")
    manager.forward(None, local_propagator=Late(late, announced=False))
    loss = manager.loss(cost(roll(manager, policy)))
    with pytest.raises(PropagationError, match=r"\[3\].*forward_impl.*manager\.backward"):
        loss.backward()
    assert all(p.grad is None for p in (late, *policy.parameters()))
    with pytest.raises(PropagationError, match="failed; record a new rollout"):
        loss.backward()
    make_loss(manager, policy).backward()
    assert_same(gradients(policy), reference("LR"))


def test_a_pass_inside_a_pass_keeps_its_gradients_to_itself() -> None:
    policy = Policy()
    inner = make_loss(PropagationManager("TP"), policy, SEED + 1)
    inner_gradients: list[Sequence[Tensor]] = []

    class Nested(LRProp):
        def backward_impl(self, node: Any, message: Any) -> Any:
            if not inner_gradients:
                inner_gradients.append(torch.autograd.grad(inner, policy.used()))
            return super().backward_impl(node, message)

    make_loss(PropagationManager(Nested()), policy).backward()
    assert_same(inner_gradients[0], reference("TP", SEED + 1))
    assert_same(gradients(policy), reference("LR"))


# -- copies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("state", ["recording", "after loss", "after backward"])
@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copied_manager_starts_without_a_rollout(
    name: str, state: str, how: Callable[[Any], Any]
) -> None:
    policy = Policy()
    manager = PropagationManager(name)
    x = roll(manager, policy)
    loss = manager.loss(x, lossfunc=cost) if state == "after loss" else None
    if state == "after backward":
        manager.append_loss(x, lossfunc=cost)
        manager.backward()
        policy.zero_grad()
    twin = how(manager)
    assert (twin.recorded, twin.size(), twin.undifferentiated) == (0, 1, 0)
    with torch.random.fork_rng():
        make_loss(twin, policy).backward()
        assert_same(gradients(policy), reference(name))
    if state == "recording":  # and the original goes on
        policy.zero_grad()
        manager.loss(x, lossfunc=cost).backward()
        assert_same(gradients(policy), reference(name))
    if loss is not None:
        policy.zero_grad()
        loss.backward()
        assert_same(gradients(policy), reference(name))
