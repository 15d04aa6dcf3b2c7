"""Strategies and precisions on two ranks: those that work give the same, the others are refused."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributions import Normal

from lightning_proppo import PropagationCallback, PropagationManager

from ...launching import launch_together
from ...quiet import QUIET

# What it shards with waits for events of streams, which PyTorch 2.6 does not have there.
can_shard = pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"), reason="PyTorch cannot shard on a CPU yet"
)

# Every combination trains the same policy with the same noise, which differs between the ranks.
SCRIPT = """
import sys

import torch
from torch import nn
from torch.distributions import Normal
from torch.utils.data import DataLoader

from lightning_proppo import PropagationCallback, PropagationManager
from lightning_proppo.installed_lightning import pl

try:
    from lightning_fabric import Fabric
except ModuleNotFoundError:
    from lightning.fabric import Fabric


class Policy(nn.Module):
    def __init__(self, unused=False):
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))
        self.model = nn.Linear(4, 2).requires_grad_(False)
        if unused:
            self.unused = nn.Parameter(torch.ones(2))

    def forward(self, manager, rank):
        torch.manual_seed(10 + rank)
        x = torch.linspace(-1, 1, 64, dtype=self.net[0].weight.dtype).reshape(32, 2)
        for noise in torch.randn(4, 32, 2, dtype=torch.float64):
            mean = x + 0.5 * self.model(torch.cat([x, self.net(x).to(x)], 1)).to(x)
            x = manager.sample(Given(noise.to(x), mean))
            manager.append_loss(x, lossfunc=lambda x: (x.float() - 1).square().sum(1))
        return manager.loss()


class Given(Normal):
    # Takes its noise from outside, so that it is the same in every precision.
    def __init__(self, noise, loc):
        super().__init__(loc, 0.1)
        self.noise = noise

    def rsample(self, sample_shape=()):
        return self.loc + self.scale * self.noise

    def sample(self, sample_shape=()):
        return self.rsample().detach()


class Module(pl.LightningModule):
    def __init__(self, automatic=True, unused=False, sharded=False):
        super().__init__()
        self.policy = Policy(unused)
        self.automatic_optimization = automatic
        self.sharded = sharded
        self.kept = []

    def setup(self, stage):
        if self.sharded:
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            fully_shard(self.policy.model, mesh=init_device_mesh("cpu", (2,)))
            frozen = [name for name, p in self.named_parameters() if not p.requires_grad]
            torch.nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
                self, frozen
            )

    def training_step(self, batch, batch_idx):
        loss = self.policy(self.manager, self.global_rank)
        if self.automatic_optimization:
            return loss
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def on_before_optimizer_step(self, optimizer):
        self.kept.append(gradient(self.policy))

    def train_dataloader(self):
        return DataLoader(range(8))

    def configure_optimizers(self):
        return torch.optim.SGD(self.policy.net.parameters(), lr=0.1)


def gradient(policy):
    return torch.cat([p.grad.flatten().double() for p in policy.net.parameters()])


def train(strategy, module, **options):
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=strategy,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[PropagationCallback("TP")],
        **options,
    )
    trainer.fit(module)
    return trainer


def combinations(folder):
    half = [pl.plugins.MixedPrecision("16-mixed", "cpu")]
    static = {"static_graph": True}
    unused = {"find_unused_parameters": True}
    ways = {
        "ddp": ({}, {}, {}),
        "unused": (unused, {"unused": True}, {}),
        "static graph": (static, {}, {}),
        "bucket views": ({"gradient_as_bucket_view": True}, {}, {}),
        "manual": ({}, {"automatic": False}, {}),
        "manual, unused": (unused, {"automatic": False, "unused": True}, {}),
        "manual, static graph": (static, {"automatic": False}, {}),
        "accumulated": ({}, {}, {"accumulate_grad_batches": 2}),
        "64-true": ({}, {}, {"precision": "64-true"}),
        "bf16-true": ({}, {}, {"precision": "bf16-true"}),
        "bf16-mixed": ({}, {}, {"precision": "bf16-mixed"}),
        "16-mixed": ({}, {}, {"plugins": half}),
        "sharded model": ({}, {"sharded": True}, {}),
    }
    if not hasattr(torch.cpu.Stream, "record_event"):
        del ways["sharded model"]
    found = {}
    for name, (ddp, given, options) in ways.items():
        module = Module(**given)
        rank = train(pl.strategies.DDPStrategy(**ddp), module, **options).global_rank
        found[name] = module.kept
    for precision in ("32-true", "64-true", "bf16-mixed"):
        fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp", precision=precision)
        fabric.launch()
        policy = Policy()
        wrapped, optimizer = fabric.setup(policy, torch.optim.SGD(policy.net.parameters(), lr=0.1))
        fabric.backward(wrapped(PropagationManager("TP"), rank))
        found["fabric " + precision] = [gradient(policy)]
    try:
        train(pl.strategies.DDPStrategy(static_graph=True), Module(), accumulate_grad_batches=2)
    except ValueError as error:
        found["refused"] = str(error)
    torch.save(found, f"{folder}/rank{rank}.pt")


def notebook(folder):
    module = Module()
    start = [p.detach().clone() for p in module.policy.net.parameters()]
    train("ddp_notebook", module)
    moved = [a - b for a, b in zip(start, module.policy.net.parameters())]
    torch.save(torch.cat([m.detach().flatten() for m in moved]), f"{folder}/notebook.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"combinations": combinations, "notebook": notebook}[sys.argv[1]](sys.argv[2])
"""
# In units of the gradient's norm; 16-bit floating point numbers have 8 and 11 bits.
ROUNDING, HALF, BRAIN = 1e-5, 0.01, 0.05
ALIKE = {
    "unused": ROUNDING,
    "static graph": ROUNDING,
    "bucket views": ROUNDING,
    "manual": ROUNDING,
    "manual, unused": ROUNDING,
    "manual, static graph": ROUNDING,
    "64-true": ROUNDING,
    "bf16-true": BRAIN,
    "bf16-mixed": BRAIN,
    "16-mixed": HALF,
    "sharded model": ROUNDING,
    "fabric 32-true": ROUNDING,
    "fabric 64-true": ROUNDING,
    "fabric bf16-mixed": BRAIN,
}


WAYS = [pytest.param(way, marks=can_shard if "sharded" in way else ()) for way in ALIKE]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What either rank found in each combination, and what moved in a notebook's way."""
    folder = tmp_path_factory.mktemp("strategies")
    (folder / "ranks.py").write_text(SCRIPT)
    ways = ["combinations", "notebook"]
    for ended in launch_together(folder, [("ranks.py", way, str(folder)) for way in ways]):
        assert ended.status == 0, ended.stderr
    ranks = [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]
    return {"ranks": ranks, "notebook": torch.load(folder / "notebook.pt")}


def error(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_combination_gives_the_gradient_of_plain_ddp(found: Any, way: str) -> None:
    for ours in found["ranks"]:
        assert error(ours[way][0], ours["ddp"][0]) <= ALIKE[way]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "accumulated", *WAYS])
def test_both_ranks_have_the_same_gradients(found: Any, way: str) -> None:
    one, two = (ours[way] for ours in found["ranks"])
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a.norm() > 0
        assert torch.equal(a, b)


@pytest.mark.slow
def test_accumulated_batches_are_averaged(found: Any) -> None:
    """All batches have the same noise, and a step comes after two of them."""
    for ours in found["ranks"]:
        assert len(ours["ddp"]) == 4
        assert len(ours["accumulated"]) == 2
        for a, b in zip(ours["accumulated"], ours["ddp"][:2], strict=True):
            assert error(a, b) <= ROUNDING


@pytest.mark.slow
def test_a_static_graph_with_accumulation_is_refused(found: Any) -> None:
    for ours in found["ranks"]:
        assert "set accumulate_grad_batches=1; got 2" in ours["refused"]


@pytest.mark.slow
def test_ranks_that_are_forked_from_a_notebook_train_alike(found: Any) -> None:
    moved = 0.1 * torch.stack(found["ranks"][0]["ddp"]).sum(0)
    assert error(found["notebook"].double(), moved) <= ROUNDING


# -- what is refused -----------------------------------------------------------------------------


@pytest.fixture
def group() -> Iterator[None]:
    """A process group with one member."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


class FakeDeepSpeedStrategy:
    checkpoint_io = None


FakeDeepSpeedStrategy.__name__ = "DeepSpeedStrategy"  # it need not be installed


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("FSDPStrategy", "FSDPStrategy cannot train through a rollout: it frees parameters"),
        ("ModelParallelStrategy", "ModelParallelStrategy cannot train through a rollout"),
        ("DeepSpeedStrategy", "DeepSpeedStrategy cannot train through a rollout.*stage 3"),
    ],
)
def test_strategies_that_shard_are_refused_with_the_reason(pl: Any, name: str, told: str) -> None:
    strategies = importlib.import_module(f"{pl.__name__}.strategies")
    made = getattr(strategies, name) if name != "DeepSpeedStrategy" else FakeDeepSpeedStrategy
    trainer = SimpleNamespace(strategy=made(), world_size=1, precision="32-true", callbacks=[])
    callback = PropagationCallback("TP")
    with pytest.raises(ValueError, match=told):
        callback.setup(trainer, nn.Linear(2, 2), "fit")
    callback.setup(trainer, nn.Linear(2, 2), "validate")  # without gradients nothing is lost


@pytest.mark.gpu
def test_fsdp_is_refused_by_a_real_trainer(pl: Any) -> None:
    with pytest.raises(ValueError, match="FSDPStrategy cannot train through a rollout"):
        train(pl, make_module(pl), "gpu", strategy="fsdp")


def make_module(pl: Any) -> Any:
    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.policy = nn.Linear(2, 2)
            self.model = nn.Linear(4, 2).requires_grad_(False)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return roll(self.manager, self.policy, self.model)

        def train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(range(2))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.policy.parameters(), lr=0.1)

    torch.manual_seed(3)
    return Module()


def roll(manager: PropagationManager, policy: nn.Module, model: nn.Module) -> Tensor:
    torch.manual_seed(5)
    x = torch.zeros(16, 2, device=next(model.parameters()).device)
    for _ in range(3):
        x = manager.sample(Normal(x + model(torch.cat([x, policy(x)], 1)), 0.1))
    return manager.loss((x - 1).square().sum(1))


def train(pl: Any, module: Any, accelerator: str = "cpu", **options: Any) -> None:
    options = {**QUIET, "accelerator": accelerator, **options}
    callbacks = [PropagationCallback("TP")]
    pl.Trainer(devices=1, max_epochs=1, callbacks=callbacks, **options).fit(module)


@can_shard
def test_a_sharded_part_is_refused_unless_it_is_frozen(pl: Any, group: None) -> None:
    mesh = init_device_mesh("cpu", (1,))
    expected = make_module(pl)
    train(pl, expected)
    frozen = make_module(pl)
    fully_shard(frozen.model, mesh=mesh)
    train(pl, frozen)
    assert torch.equal(frozen.policy.weight, expected.policy.weight)
    trained = make_module(pl)
    fully_shard(trained.policy, mesh=mesh)
    with pytest.raises(ValueError, match=r"Module\.policy has trainable parameters.*fully_shard"):
        train(pl, trained)
    wrapped = make_module(pl)
    wrapped.model = FullyShardedDataParallel(wrapped.model, device_id=torch.device("cpu"))
    with pytest.raises(ValueError, match=r"Module\.model cannot.*FullyShardedDataParallel"):
        train(pl, wrapped)


@can_shard
@pytest.mark.parametrize("name", ["TP", "LR", "GR"])
def test_the_reason_still_holds(group: None, name: str) -> None:
    """Should this fail with a new PyTorch, what is refused above may work."""
    mesh = init_device_mesh("cpu", (1,))
    policy, model = nn.Linear(2, 2), nn.Linear(4, 2)
    fully_shard(policy, mesh=mesh)
    roll(PropagationManager(name), policy, model).backward()
    assert all(p.grad is None for p in policy.parameters())


# -- half precision with a scaled loss -----------------------------------------------------------


@pytest.mark.parametrize("accelerator", ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def test_16_mixed_gives_nearly_the_gradient_of_32(pl: Any, accelerator: str) -> None:
    found = []
    for half in (False, True):
        module, kept = make_module(pl), []

        def step(batch: Any, batch_idx: int, module: Any = module) -> Tensor:
            return roll(module.manager, module.policy, module.model)

        def keep(optimizer: Any, module: Any = module, kept: list[Tensor] = kept) -> None:
            kept.append(module.policy.weight.grad.clone())

        module.training_step, module.on_before_optimizer_step = step, keep
        plugins = importlib.import_module(f"{pl.__name__}.plugins")
        # By its name Lightning gives it on a GPU alone.
        device = "cuda" if accelerator == "gpu" else accelerator
        options: Any = {"plugins": [plugins.MixedPrecision("16-mixed", device)]} if half else {}
        train(pl, module, accelerator=accelerator, **options)
        found.append(kept[0])
    assert 0 < error(found[1], found[0]) <= HALF
