"""The callback that puts a propagation manager into a LightningModule."""

from __future__ import annotations

from collections.abc import Iterable
from keyword import iskeyword
from typing import Any

import torch

from lightning_proppo.callbacks.checkpoints import write_whole_checkpoints
from lightning_proppo.callbacks.leaving import leave_at_exit, leave_on_failure
from lightning_proppo.callbacks.logs import KeptLogs
from lightning_proppo.callbacks.noise import NoiseStream, own_row
from lightning_proppo.callbacks.strategies import (
    refuse_sharded_parts,
    refuse_static_accumulation,
    refuse_strategy,
)
from lightning_proppo.engine.cuts import explain_change_in_place
from lightning_proppo.errors import PropagationError
from lightning_proppo.generators import restore
from lightning_proppo.installed_lightning import pl, rank_zero_warn
from lightning_proppo.manager import PropagationManager
from lightning_proppo.propagators import Propagator

# In a checkpoint.
_NOISE = "proppo_noise"
_OUTSIDE = "proppo_outside"
_LOGS = "proppo_logs"
_DISAGREEMENT = "proppo_disagreement"


class PropagationCallback(pl.Callback):
    """Gives the module its manager, and looks after the manager's tape during training.

    - The module finds a :class:`PropagationManager` under ``attribute``. A module that brings its
      own keeps it. What another callback gave is given back after an evaluation.
    - The tape is cleared at each batch and after an exception.
    - Training steps draw from a stream of random numbers of their own. With several ranks, each
      has its own, also after ``seed_everything``; it depends on Lightning's seed and the rank.
    - Checkpoints hold it, where RP and LR have disagreed, and the states of all global generators
      (PyTorch's, NumPy's, Python's): a run that is resumed draws what it would have drawn.
    - Checkpoints are written as a whole or not at all, and unpickle nothing but tensors and plain
      values. What was logged before one is on the disk before it; a CSVLogger's file goes on where
      it was (Lightning's begins anew).
    - With several ranks, baselines, weights and fitted Gaussians are made of the particles of all
      (``sync``).
    - A rank that fails tells why and ends, and does not leave the others waiting.
    - A ``training_step`` whose rollout would be lost without a word is an error; with manual
      optimization a loss that was not differentiated is a warning.
    - The module's loggers get ``propagation/cost`` and, with TP, ``propagation/lr_weight``, the
      mean weight given to LR.

    It works in ``pytorch_lightning.Trainer`` and in ``lightning.pytorch.Trainer``.

    Args:
        propagator: the estimator: a name (``"RP"``, ``"LR"``, ``"TP"``, ...;
            :func:`~lightning_proppo.propagators.make_estimator` lists them) or a propagator.
        loss_propagator: what computes at losses; None: what the estimator asks for.
        attribute: the module's attribute that holds the manager.
        log: whether to log.
        options: of the named estimator's samples, e.g. ``{"noise": "quasi-random"}``.
        sync: see :class:`PropagationManager`; False leaves each rank its own statistics.

    Raises:
        TypeError, ValueError: for an unknown estimator or option; at the start of training,
            ValueError for FSDP, model parallelism and DeepSpeed, and for another callback with
            the same ``attribute``.
    """

    def __init__(
        self,
        propagator: str | Propagator = "TP",
        loss_propagator: Propagator | None = None,
        attribute: str = "manager",
        log: bool = True,
        options: dict[str, Any] | None = None,
        sync: bool = True,
    ) -> None:
        if not isinstance(attribute, str) or not attribute.isidentifier() or iskeyword(attribute):
            raise ValueError(
                "attribute must be the name of the module's attribute for the manager, a string "
                f"such as 'manager'; got {attribute!r}."
            )
        if not isinstance(propagator, (str, Propagator)):
            raise TypeError(
                "propagator must be an estimator's name or a Propagator; got "
                f"{type(propagator).__name__}."
            )
        self.propagator = propagator
        self.loss_propagator = loss_propagator
        self.attribute = attribute
        self.log_statistics = log
        self.options = dict(options or {})
        self.sync = sync
        self._noise = NoiseStream()
        self._logs = KeptLogs()
        self._displaced: PropagationManager | None = None
        self._has_warned = False
        # Made at once, so that a misspelt name is an error where it was written.
        self._manager = self._make_manager()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the module and its Trainer out: Lightning hangs the module's log methods here."""
        return {name: v for name, v in vars(self).items() if name not in ("log", "log_dict")}

    def manager_of(self, pl_module: Any) -> PropagationManager:
        """Return the module's manager.

        Raises:
            PropagationError: if the module has none.
        """
        manager = getattr(pl_module, self.attribute, None)
        if not isinstance(manager, PropagationManager):
            raise PropagationError(
                f"{type(pl_module).__name__}.{self.attribute} must be a PropagationManager; got "
                f"{type(manager).__name__}."
            )
        return manager

    # -- Lightning's hooks -------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse strategies that cannot work; give the module its manager."""
        if stage == "fit":
            refuse_strategy(trainer.strategy)
        self._refuse_another(trainer.callbacks)
        leave_at_exit()
        write_whole_checkpoints(trainer.strategy)
        if trainer.precision == "64-true":
            # Lightning does so after it has loaded a checkpoint, whose weights were rounded then.
            pl_module.double()
        present = getattr(pl_module, self.attribute, None)
        if present is None or getattr(present, "given_by_callback", False):
            # Another Trainer's, whose training this evaluation may interrupt.
            elsewhere = stage != "fit" and present not in (None, self._manager)
            self._displaced = present if elsewhere else None
            setattr(pl_module, self.attribute, self._manager)
        else:
            self.manager_of(pl_module)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Give another callback's manager back."""
        del trainer, stage
        displaced, self._displaced = self._displaced, None
        if displaced is not None:
            setattr(pl_module, self.attribute, displaced)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse what can be seen only when the strategy has been set up."""
        refuse_sharded_parts(pl_module)
        refuse_static_accumulation(trainer.strategy, trainer.accumulate_grad_batches)
        self._logs.go_on(trainer)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin the stream of noise, or go on with that of a checkpoint."""
        self._noise.begin(pl_module.device, trainer.global_rank, trainer.world_size)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Keep noise and generators of all ranks, what was logged, and RP's and LR's disagreement.

        All ranks remember the same disagreement; without ``sync``, that of rank 0 is kept.
        """
        checkpoint[_NOISE] = self._noise.state_of_ranks()
        checkpoint[_OUTSIDE] = self._noise.outside_of_ranks()
        checkpoint[_LOGS] = self._logs.keep(trainer)
        manager = getattr(pl_module, self.attribute, None)
        if isinstance(manager, PropagationManager):
            known = checkpoint.setdefault(_DISAGREEMENT, {})
            known[self.attribute] = manager.disagreement.state_dict()

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Take them from a checkpoint."""
        if trainer.state.fn != "fit":
            return
        self._noise.load(checkpoint.get(_NOISE, {}))
        self._logs.load(checkpoint.get(_LOGS, {}))
        known = checkpoint.get(_DISAGREEMENT, {}).get(self.attribute)
        if known is not None:
            memory = self.manager_of(pl_module).disagreement
            memory.load_state_dict(known)
        # As early as this, since data loaders draw when they are set up. Where they do not fit, the
        # stream of noise will say so.
        device = trainer.strategy.root_device
        rows = checkpoint.get(_OUTSIDE, {})
        states = own_row(rows, device, trainer.global_rank, trainer.world_size)
        if states is not None:
            restore(states, device)

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Clear the tape, and what was to be logged of the batch before; begin to draw noise."""
        del trainer, batch, batch_idx
        self._noise.enter()
        manager = self.manager_of(pl_module)
        manager.reset()
        manager.last_cost, manager.statistics = None, {}

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Clear the costs that a batch before may have left without asking for their sum."""
        del trainer, batch, batch_idx, dataloader_idx
        self.manager_of(pl_module).reset()

    def on_test_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Clear the tape."""
        self.on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)

    def on_predict_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Clear the tape."""
        self.on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """Refuse a loss that leaves a recorded rollout out."""
        del trainer
        if pl_module.automatic_optimization:
            detached = isinstance(loss, torch.Tensor) and not loss.requires_grad
            self._check_nothing_is_lost(pl_module, no_more_to_come=detached)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Refuse a batch that left a recorded rollout out; log."""
        del trainer, outputs, batch, batch_idx
        self._noise.leave()
        self._check_nothing_is_lost(pl_module, no_more_to_come=True)
        if self.log_statistics:
            self._log(pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Draw from this stream no longer, where a batch was broken off."""
        del trainer, pl_module
        self._noise.leave()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Clear the tape; on several ranks, leave before anything waits for the others."""
        self._noise.leave()
        explain_change_in_place(exception)
        manager = getattr(pl_module, self.attribute, None)
        if isinstance(manager, PropagationManager):
            manager.reset()
        self.teardown(trainer, pl_module, "")  # which Lightning leaves out
        leave_on_failure(trainer, exception)

    # -- inner -------------------------------------------------------------------------------

    def _refuse_another(self, callbacks: Iterable[Any]) -> None:
        """Raise if another callback, too, gives the module a manager under this name."""
        if any(
            isinstance(each, PropagationCallback)
            and each is not self
            and each.attribute == self.attribute
            for each in callbacks
        ):
            raise ValueError(
                "callbacks: two PropagationCallbacks set the module's attribute "
                f"{self.attribute!r}; keep one, or give them different attributes "
                "(attribute='...')."
            )

    def _make_manager(self) -> PropagationManager:
        manager = PropagationManager(
            self.propagator, self.loss_propagator, sync=self.sync, **self.options
        )
        manager.given_by_callback = True
        return manager

    def _check_nothing_is_lost(self, pl_module: Any, no_more_to_come: bool) -> None:
        """Raise if a rollout was recorded that no loss, or a loss that no backward pass, took up.

        Args:
            pl_module: the module.
            no_more_to_come: whether all backward passes of this batch are over.
        """
        manager = self.manager_of(pl_module)
        name = f"{type(pl_module).__name__}.training_step"
        if manager.recorded:
            count = manager.recorded
            manager.reset()
            raise PropagationError(
                f"{name} recorded {count} samples or costs but did not return "
                f"self.{self.attribute}.loss(...), so their gradient would be lost. Return it "
                "(or a sum with it); draw samples that need no gradient under torch.no_grad()."
            )
        if not no_more_to_come or not manager.undifferentiated:
            return
        count = manager.undifferentiated
        manager.reset()
        if pl_module.automatic_optimization:
            raise PropagationError(
                f"{name} called self.{self.attribute}.loss(...), but {count} of the losses that "
                "it made had no part in what it returned and were never differentiated. Return "
                "the loss itself (or a sum of all of them), not its item() or detach(). To skip "
                f"a batch on purpose, call self.{self.attribute}.reset() and return None."
            )
        if not self._has_warned:
            self._has_warned = True
            rank_zero_warn(
                f"{name} called self.{self.attribute}.loss(...), but {count} of the losses that it "
                "made were not differentiated in their batch. Call self.manual_backward(loss); "
                "compute costs that need no gradient under torch.no_grad(); where it is on "
                f"purpose, call self.{self.attribute}.reset()."
            )

    def _log(self, pl_module: Any) -> None:
        manager = self.manager_of(pl_module)
        if manager.last_cost is not None:
            pl_module.log("propagation/cost", manager.last_cost)
        weights = manager.statistics.get("lr_weight")
        if weights:
            pl_module.log("propagation/lr_weight", torch.stack(weights).mean())
