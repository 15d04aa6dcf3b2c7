"""Two ranks: the gradients are averaged as ever, and each rank draws noise of its own.

Both ranks run in processes that Lightning launches from a script of their own. Everything is
asked of one launch, because a launch takes seconds. Each rank's statistics are its own here
(``sync=False``), so that one process can compute what the mean is to be; test_ranks.py is about
statistics over all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ..launching import launch_successfully
from ..scripts import load_script

pytestmark = pytest.mark.slow

ROUNDING = 1e-10
NAMES = ["RP", "LR", "TP", "GR", "GS"]

SCRIPT = '''
import atexit
import importlib
import sys

import torch
from torch import nn
from torch.distributions import Normal
from torch.utils.data import DataLoader

from lightning_proppo import PropagationCallback, PropagationManager

NAMES = ["RP", "LR", "TP", "GR", "GS"]
SPAWNED = [("TP", 10, 20)] * 3


class Policy(nn.Module):
    def __init__(self, unused=False):
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))
        self.log_scale = nn.Parameter(torch.tensor([-1.0, -1.5]))
        if unused:
            self.unused = nn.Parameter(torch.ones(2))
        self.double()

    def forward(self, x):
        return Normal(x + 0.5 * self.net(x), self.log_scale.exp().expand_as(x))


def cost(x):
    return 1.0 - (-(x - 1.0).square().sum(1)).exp()


def make_loss(manager, policy, seed):
    torch.manual_seed(seed)
    x = torch.linspace(-1, 1, 64, dtype=torch.float64).reshape(32, 2)
    for _ in range(5):
        x = manager.sample(policy(x))
        manager.append_loss(x, lossfunc=cost)
    return manager.loss()


def gradients(policy):
    return [p.grad.clone() for p in policy.parameters() if p.grad is not None]


def make_module(pl, plan, automatic=True, unused=False, rate=0.0):
    """A module whose batches follow a plan: (estimator, seed of rank 0, seed of rank 1)."""

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.policy = Policy(unused)
            self.automatic_optimization = automatic
            self.managers = {name: PropagationManager(name, sync=False) for name in NAMES}
            self.kept = []
            self.noise = None

        def on_fit_start(self):
            # A spawned process that ends with a group's threads still running may be aborted.
            if self.trainer.strategy.launcher.__class__.__name__ == "_MultiProcessingLauncher":
                atexit.register(torch.distributed.destroy_process_group)

        def training_step(self, batch, batch_idx):
            if self.noise is None:
                self.noise = torch.randn(1000, dtype=torch.float64)
            name, *seeds = plan[batch_idx]
            if rate == 0.0:  # else the estimator is the callback's
                self.manager = self.managers[name]
            loss = make_loss(self.manager, self.policy, seeds[self.global_rank])
            if automatic:
                return loss
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

        def on_before_optimizer_step(self, optimizer):
            self.kept.append(gradients(self.policy))

        def train_dataloader(self):
            return DataLoader(range(len(plan)))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=rate)

    Module.__qualname__ = "Module"  # where a spawned process looks for it
    globals()["Module"] = Module
    return Module()


def make_trainer(pl, strategy, **options):
    return pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=strategy,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[PropagationCallback("TP", sync=False)],
        **options,
    )


def plan():
    """First all ranks with the same noise, then each with its own."""
    return [(name, 10, 10) for name in NAMES] + [(name, 10, 20) for name in NAMES]


class Loss(nn.Module):
    """A rollout as an ordinary module does it, whose last sample costs nothing."""

    def __init__(self, name):
        super().__init__()
        self.policy = Policy()
        self.idle = nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.name = name

    def forward(self, seed):
        torch.manual_seed(seed)
        manager = PropagationManager(self.name, sync=False)
        x = torch.linspace(-1, 1, 64, dtype=torch.float64).reshape(32, 2)
        for _ in range(5):
            x = manager.sample(self.policy(x))
            manager.append_loss(x, lossfunc=cost)
        manager.sample(Normal(x + self.idle, 0.1))
        return manager.loss()


def main(folder):
    from lightning_proppo.installed_lightning import pl

    try:
        from lightning_fabric import Fabric
    except ModuleNotFoundError:
        from lightning.fabric import Fabric

    torch.set_num_threads(1)
    result = {}
    pl.seed_everything(1)
    module = make_module(pl, plan())
    make_trainer(pl, "ddp").fit(module)
    result["automatic"], result["noise"] = module.kept, module.noise
    rank = module.global_rank

    pl.seed_everything(1)
    module = make_module(pl, plan(), automatic=False, unused=True)
    make_trainer(pl, "ddp_find_unused_parameters_true").fit(module)
    result["manual"], result["noise again"] = module.kept, module.noise

    four = [("TP", 10 + k, 20 + k) for k in range(4)]
    module = make_module(pl, four)
    make_trainer(pl, "ddp", accumulate_grad_batches=4).fit(module)
    result["accumulated"] = module.kept

    for name in ("LR", "TP"):
        wrapped = nn.parallel.DistributedDataParallel(Loss(name))
        for _ in range(2):  # a second pass fails unless the first reached every parameter
            wrapped.zero_grad()
            wrapped((10, 20)[rank]).backward()
        result["plain " + name] = gradients(wrapped.module.policy)

    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    wrapped = fabric.setup_module(Loss("TP"))
    fabric.backward(wrapped((10, 20)[rank]))
    result["fabric"] = gradients(wrapped.module.policy)
    torch.save(result, f"{folder}/rank{rank}.pt")


def spawn(folder):
    import lightning.pytorch as pl

    torch.set_num_threads(1)
    module = make_module(pl, SPAWNED, rate=0.5)
    trainer = make_trainer(pl, "ddp_spawn")
    trainer.fit(module)
    torch.save(list(module.state_dict().values()), f"{folder}/spawned.pt")


if __name__ == "__main__":
    {"main": main, "spawn": spawn}[sys.argv[1]](sys.argv[2])
elif __name__ == "__mp_main__":  # a spawned process unpickles the module by its class's name
    make_module(importlib.import_module("lightning.pytorch"), SPAWNED, rate=0.5)
'''


def write_script(folder: Path) -> Any:
    """Write the script, and return it as a module: the reference is computed by the same code."""
    path = folder / "ranks.py"
    path.write_text(SCRIPT)
    return load_script(path)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[dict[str, Any]]]:
    """The script as a module, and what the two ranks found."""
    folder = tmp_path_factory.mktemp("ranks")
    script = write_script(folder)
    launch_successfully(folder, str(folder / "ranks.py"), "main", str(folder))
    return script, [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


def single(script: Any, name: str, seed: int) -> list[Tensor]:
    """Return the gradients of one process."""
    policy = script.Policy()
    script.make_loss(script.PropagationManager(name), policy, seed).backward()
    return script.gradients(policy)


def mean(*every: Sequence[Tensor]) -> list[Tensor]:
    return [torch.stack(list(each)).mean(0) for each in zip(*every, strict=True)]


def assert_same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert len(found) == len(expected) == 5
    for a, b in zip(found, expected, strict=True):
        assert b.norm() > 0
        assert (a - b).norm() <= ROUNDING * b.norm()


@pytest.mark.parametrize("position", range(5), ids=NAMES)
@pytest.mark.parametrize("optimization", ["automatic", "manual"])
def test_with_the_same_noise_two_ranks_give_the_gradient_of_one_process(
    ranks: Any, optimization: str, position: int
) -> None:
    script, found = ranks
    for rank in range(2):
        assert_same(found[rank][optimization][position], single(script, NAMES[position], 10))


@pytest.mark.parametrize("position", range(5), ids=NAMES)
@pytest.mark.parametrize("optimization", ["automatic", "manual"])
def test_with_noise_of_their_own_two_ranks_give_the_mean_of_their_gradients(
    ranks: Any, optimization: str, position: int
) -> None:
    script, found = ranks
    name = NAMES[position]
    expected = mean(single(script, name, 10), single(script, name, 20))
    one, two = (found[rank][optimization][5 + position] for rank in range(2))
    assert_same(one, expected)
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a, b)


def test_accumulated_batches_are_averaged_over_batches_and_ranks(ranks: Any) -> None:
    script, found = ranks
    expected = mean(*(single(script, "TP", seed + k) for seed in (10, 20) for k in range(4)))
    for rank in range(2):
        assert len(found[rank]["accumulated"]) == 1
        assert_same(found[rank]["accumulated"][0], expected)


@pytest.mark.parametrize("way", ["plain LR", "plain TP", "fabric"])
def test_ddp_without_lightning_and_fabric_average_too(ranks: Any, way: str) -> None:
    """Also where a parameter is used by a sample that no cost follows, and gets no gradient."""
    script, found = ranks
    name = "LR" if way == "plain LR" else "TP"
    expected = mean(single(script, name, 10), single(script, name, 20))
    for rank in range(2):
        assert_same(found[rank][way], expected)


def test_each_rank_draws_noise_of_its_own_after_seed_everything(ranks: Any) -> None:
    _, found = ranks
    one, two = (found[rank]["noise"] for rank in range(2))
    assert not (one == two).any()
    assert torch.corrcoef(torch.stack([one, two]))[0, 1].abs() < 0.15  # 1000 numbers: 5 sigma


def test_the_same_seed_gives_the_same_noise_on_each_rank_again(ranks: Any) -> None:
    _, found = ranks
    for rank in range(2):
        assert torch.equal(found[rank]["noise"], found[rank]["noise again"])


def test_module_and_callback_can_be_sent_to_spawned_ranks(tmp_path: Path) -> None:
    script = write_script(tmp_path)
    launch_successfully(tmp_path, str(tmp_path / "ranks.py"), "spawn", str(tmp_path))
    policy = script.Policy()
    manager = script.PropagationManager("TP")
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        (
            (script.make_loss(manager, policy, 10) + script.make_loss(manager, policy, 20)) / 2
        ).backward()
        optimizer.step()
    assert_same(torch.load(tmp_path / "spawned.pt"), [p.detach() for p in policy.parameters()])
