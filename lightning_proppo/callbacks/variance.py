"""The callback that shows how noisy a gradient is, and how noisy others' would be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_proppo.callbacks.alarms import Alarm, Disagreement, Words
from lightning_proppo.callbacks.outside import (
    SteppedParameters,
    hint_at_outside,
    parameters_of,
)
from lightning_proppo.callbacks.successive import STEPS, SuccessiveGradients
from lightning_proppo.callbacks.tensorboard import TensorBoardPages, lay_out, tensorboard_writers
from lightning_proppo.comparison import COMPARABLE, Comparison, Difference, Findings
from lightning_proppo.errors import add_note, check_choice
from lightning_proppo.installed_lightning import pl, rank_zero_warn
from lightning_proppo.manager import PropagationManager
from lightning_proppo.mathematics.accuracy import (
    particles_needed,
    signal_to_noise,
    squared_signal,
)
from lightning_proppo.propagators.comparing import comparable, comparing_propagators


class VarianceMonitor(pl.Callback):
    r"""Logs the variance of the gradient, and what other estimators' would be.

    At every ``every_n_steps``-th step of ``trainer.global_step``, which counts the steps of all
    optimizers, for the estimator in use and for those that could
    have been used instead, from the same rollout:

    - ``variance/RP``, ``/LR``, ``/TP``: the trace of the covariance of the batch-mean gradient,
      :math:`V = \mathrm{tr}\,\mathrm{Cov}[\hat g]`;
    - ``snr/...``: the signal-to-noise ratio :math:`\max(|\hat g|^2 - V, 0) / V`;
    - ``gradient_norm/...``: :math:`|\hat g|`;
    - ``particles_needed/...``: how many particles that estimator needs to be as accurate as the one
      in use is with those of the batch, :math:`P V_{other} / V_{used}`;
    - ``not_finite/...``: how many particles have a gradient that is not finite;
    - ``bias/RP``: RP's bias, :math:`\sqrt{\max(|\hat d|^2 - V_d, 0)}`, where :math:`\hat d` is RP's
      gradient less LR's and :math:`V_d` its variance: both estimate the same gradient, but RP
      misses what happens where the costs or the dynamics jump;
    - ``disagreement/RP``: :math:`z = |\hat d| / \sqrt{V_d}`, about one without a bias;

    and under ``gradient/variance``, ``gradient/snr``, ``gradient/norm`` and ``gradient/not_finite``
    those of the estimator in use. TensorBoard also gets TP's weight on LR and both variances by
    time step, as histograms and as images, and where RP and LR disagree. The gradient itself is
    left as it is. The step that numbers are logged at is that of the module's own ``self.log``, so
    that their rows join: it counts batches after which an optimizer stepped, however many did.

    With a manager whose estimator is ``"RP"``, ``"LR"``, ``"TP"`` or ``"TPX"``, the rollout of that
    step is recorded in a way that all of them can be had from; other steps run as they always do.
    With any other estimator, or any other LightningModule, only the four of ``gradient/`` are
    logged: their variance is computed from the gradients of three successive optimizer steps
    (:func:`~lightning_proppo.mathematics.accuracy.variance_of_successive`).

    Args:
        every_n_steps: how many optimizer steps there are from one that is looked at to the next.
            With two optimizers that step in each batch, 50 of them are 25 batches.
        compare: the estimators to compare.
        parameters: names of parameters or submodules that the variance is of; None: all that the
            rollout reaches.
        alarm: what happens when the gradient is noise, or wrong because RP misses a jump: None for
            nothing, ``"warn"``, or ``"stop"``. Where RP misses a jump but TP's guard does not, or
            LR is in use, ``"stop"`` warns only.
        min_snr: the alarm's threshold for the signal-to-noise ratio.
        max_rp_ratio: where RP is in use, its variance raises the alarm at so many times LR's.
        patience: how many looks must find it so; the ratio, and the difference of RP and LR, are
            those of all of them together.
        attribute: the module's attribute that holds the manager.
        sketches: random projections of each particle's gradient at parameters of more than 32
            elements; more are more exact and cost more.
        name: what is logged is called ``<name>/variance/RP`` and so on; "" leaves ``variance/RP``.
            A module with several managers has a monitor of its own name for each.

    Attributes:
        last: the numbers of the last look, by the names that they are logged under.

    Raises:
        ValueError: for a number or name that cannot be; at the start of training, for another
            monitor with the same ``name`` or ``attribute``.
    """

    def __init__(
        self,
        every_n_steps: int = 50,
        compare: Sequence[str] = COMPARABLE,
        parameters: Sequence[str] | None = None,
        alarm: str | None = None,
        min_snr: float = 0.01,
        max_rp_ratio: float = 1e3,
        patience: int = 10,
        attribute: str = "manager",
        sketches: int = 1,
        name: str = "",
    ) -> None:
        for argument, value in (("every_n_steps", every_n_steps), ("sketches", sketches)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{argument} must be an int of at least 1; got {value!r}.")
        if isinstance(compare, str):
            raise ValueError(f"compare must be a list of estimators' names; got {compare!r}.")
        for estimator in compare:
            check_choice("compare", estimator, COMPARABLE)
        if not isinstance(name, str):
            raise ValueError(f"name must be a string that tags begin with; got {name!r}.")
        if isinstance(parameters, str) or (parameters is not None and not parameters):
            raise ValueError(
                "parameters must be a list of names of parameters or submodules, or None; got "
                f"{parameters!r}."
            )
        self.every_n_steps = every_n_steps
        self.compare = tuple(compare)
        self.parameters = None if parameters is None else tuple(parameters)
        self.alarm = Alarm(alarm, min_snr, max_rp_ratio, patience)
        self.attribute = attribute
        self.sketches = sketches
        self.name = name
        self.last: dict[str, float] = {}
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the module and its Trainer out: Lightning hangs the module's log methods here."""
        return {name: v for name, v in vars(self).items() if name not in ("log", "log_dict")}

    def _forget(self) -> None:
        self._due = 0
        self._incomparable = False  # what was found to be so in a rollout
        self.alarm.reset()
        self._comparison: Comparison | None = None
        self._stepped = SteppedParameters()
        # A manager with the propagators that it is to get back.
        self._own: tuple[PropagationManager, Any, Any] | None = None
        self._successive = SuccessiveGradients()
        self._pages = TensorBoardPages(self.name)
        self._step = 0  # the Trainer's global one
        self._logged_step = 0

    # -- Lightning's hooks -------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """What tells this monitor's part of a checkpoint from that of another."""
        own = {"attribute": self.attribute, "name": self.name}
        if own == {"attribute": "manager", "name": ""}:
            return super().state_key
        return self._generate_state_key(**own)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Find the state of an only monitor where it was whatever its attribute or name."""
        del pl_module
        states = checkpoint["callbacks"]
        if len(_monitors(trainer)) == 1 and super().state_key in states:
            states.setdefault(self.state_key, states[super().state_key])

    def state_dict(self) -> dict[str, Any]:
        """Return when the next look is due, and what the alarm and the image need of earlier ones.

        Of the gradients of successive steps, those that the next look needs.
        """
        return {
            "due": self._due,
            "incomparable": self._incomparable,
            "last": dict(self.last),
            "alarm": self.alarm.state_dict(),
            "gradients": self._successive.state_dict(),
            "pages": self._pages.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._due = state_dict["due"]
        self._incomparable = state_dict["incomparable"]
        self.last = dict(state_dict["last"])
        self.alarm.load_state_dict(state_dict["alarm"])
        self._successive.load_state_dict(state_dict["gradients"])
        self._pages.load_state_dict(state_dict["pages"])

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Lay out TensorBoard's pages, before Lightning writes the hyperparameters."""
        if stage != "fit":
            return
        self._forget()
        self._choose(pl_module)  # a name that is not there is an error now
        monitors = _monitors(trainer)
        _refuse_equals(monitors)
        if trainer.is_global_zero and self is monitors[-1]:
            charts: dict[str, Any] = {}
            hyperparameters = dict(getattr(pl_module, "hparams_initial", {}))
            metrics = []
            for each in monitors:
                charts |= each._pages.charts(each._compared(pl_module))
                hyperparameters[each._pages.tag("estimator")] = each._estimator(pl_module)
                metrics += [each._pages.tag(f"gradient/{kind}") for kind in ("variance", "snr")]
            for writer in tensorboard_writers(trainer):
                lay_out(writer, charts, hyperparameters, metrics)

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Have the rollout of a step that is due recorded for comparison."""
        del batch, batch_idx
        self._step, self._logged_step = trainer.global_step, _logged_step(trainer)
        manager = self._manager(pl_module)
        used = None if manager is None else self._used(manager)
        if manager is None or used is None or self._step < self._due:
            return
        self._due = self._next(self._step)
        chosen = self._choose(pl_module)
        comparison = Comparison(used, self.compare, chosen, self.sketches, seed=self._step)
        self._comparison, self._stepped = comparison, SteppedParameters()
        self._own = manager, manager.default_propagator, manager.loss_propagator
        manager.default_propagator, manager.loss_propagator = comparing_propagators(
            manager.default_propagator, comparison
        )

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Keep the gradients of successive steps, where there is no rollout to look into."""
        if self._comparison is not None and self._comparison.weighed:
            self._stepped.add(self._comparison.weighed, optimizer)
        manager = self._manager(pl_module)
        if manager is not None and (self._own is not None or self._used(manager) is not None):
            return
        if trainer.global_step <= max(self._due, STEPS - 1) - STEPS:
            return
        chosen = self._choose(pl_module)
        gradients = [
            torch.zeros_like(p) if p.grad is None else p.grad.detach().clone()
            for group in optimizer.param_groups
            for p in group["params"]
            if chosen is None or chosen(p)
        ]
        place = [id(each) for each in trainer.optimizers].index(id(optimizer))
        self._successive.keep(place, gradients)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log what was found."""
        del outputs, batch, batch_idx
        comparison, own = self._comparison, self._own
        self._give_back()
        if comparison is not None and own is not None:
            findings = comparison.findings(own[0].disagreement)
            if findings is not None:
                self._report(trainer, pl_module, comparison, findings)
                self._hint(trainer, pl_module, comparison)
        elif len(self._successive) and self._step >= max(self._due, STEPS - 1):
            self._report_successive(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Draw the image, if it is not dear beside the training."""
        del pl_module
        if trainer.is_global_zero:
            self._pages.draw(tensorboard_writers(trainer), _logged_step(trainer), spare=True)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Draw the image."""
        del pl_module
        if trainer.is_global_zero:
            self._pages.draw(tensorboard_writers(trainer), _logged_step(trainer), spare=False)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Give the manager its propagators back, and say what was different in this step."""
        del trainer, pl_module
        if self._comparison is not None and self._comparison.used == "LR":
            add_note(
                exception,
                "VarianceMonitor compares estimators at this step, for which LR's samples carry "
                "gradients. If that is what failed (numpy(), a simulator), pass "
                "VarianceMonitor(compare=['LR']).",
            )
        self._give_back()

    # -- inner -------------------------------------------------------------------------------

    def _manager(self, pl_module: Any) -> PropagationManager | None:
        manager = getattr(pl_module, self.attribute, None)
        return manager if isinstance(manager, PropagationManager) else None

    def _used(self, manager: PropagationManager) -> str | None:
        """Return the estimator in use, if it is one that can be compared."""
        if self._incomparable:
            return None
        return comparable(manager.default_propagator, manager.loss_propagator)

    def _compared(self, pl_module: Any) -> list[str]:
        manager = self._manager(pl_module)
        used = None if manager is None else self._used(manager)
        if used is None:
            return []
        return [name for name in COMPARABLE if name in self.compare or name == used]

    def _next(self, step: int) -> int:
        return (step // self.every_n_steps + 1) * self.every_n_steps

    def _give_back(self) -> None:
        if self._own is not None:
            manager, sampler, loss = self._own
            manager.default_propagator, manager.loss_propagator = sampler, loss
        self._own = self._comparison = None

    def _choose(self, pl_module: nn.Module) -> Callable[[Tensor], bool] | None:
        """Return what tells the parameters that the variance is of; None for all.

        Raises:
            ValueError: for a name without parameters.
        """
        if self.parameters is None:
            return None
        found: set[int] = set()
        named = dict(pl_module.named_parameters())
        for name in self.parameters:
            own = {id(p) for key, p in named.items() if key == name or key.startswith(f"{name}.")}
            if not own:
                raise ValueError(
                    f"parameters: {type(pl_module).__name__} has no parameter or submodule with "
                    f"parameters named {name!r}; its parameters are {', '.join(named)}."
                )
            found |= own
        return lambda parameter: id(parameter) in found

    def _estimator(self, pl_module: Any) -> str:
        """Return the estimator's name, or that of the propagator."""
        manager = self._manager(pl_module)
        if manager is None:
            return "none"
        return self._used(manager) or type(manager.default_propagator).__name__

    def _title(self) -> str:
        return f"VarianceMonitor {self.name!r}" if self.name else "VarianceMonitor"

    def _report(
        self, trainer: Any, pl_module: Any, comparison: Comparison, findings: Findings
    ) -> None:
        """Log what was found in a rollout."""
        for name, reason in findings.missing.items():
            _warn_once(f"{self._title()} cannot compare {name}: {reason}.")
        names = list(findings.estimates)
        if comparison.used not in names:
            self._incomparable = True
            return
        estimates = findings.estimates.values()
        numbers = [
            *(e.variance / trainer.world_size for e in estimates),
            *(squared_signal(e.squared_norm, e.variance) for e in estimates),
            *(float(e.not_finite) for e in estimates),
        ]
        numbers = _mean_over_ranks(trainer, pl_module, numbers)
        size = len(names)
        columns = [dict(zip(names, numbers[k * size :], strict=False)) for k in range(3)]
        variance, signal, wrong = columns
        used = comparison.used
        particles = findings.particles * trainer.world_size
        metrics: dict[str, float] = {}
        for name in names:
            metrics[f"variance/{name}"] = variance[name]
            metrics[f"snr/{name}"] = signal_to_noise(signal[name], variance[name])
            # With one rank the signal's estimate is what was subtracted from, and this its norm.
            metrics[f"gradient_norm/{name}"] = math.sqrt(max(signal[name] + variance[name], 0.0))
            metrics[f"particles_needed/{name}"] = particles_needed(
                particles, variance[used], variance[name]
            )
            metrics[f"not_finite/{name}"] = wrong[name] * trainer.world_size
        difference = _of_all_ranks(trainer, pl_module, findings.difference)
        if difference is not None:
            metrics["bias/RP"] = difference.bias
            metrics["disagreement/RP"] = difference.standard_errors
        of_used = {
            "gradient/variance": metrics[f"variance/{used}"],
            "gradient/snr": metrics[f"snr/{used}"],
            "gradient/norm": metrics[f"gradient_norm/{used}"],
            "gradient/not_finite": metrics[f"not_finite/{used}"],
        }
        self._log(trainer, {**of_used, **metrics})
        # Of the mean over all ranks, as the totals are.
        shown = replace(
            findings,
            variances={k: v / trainer.world_size for k, v in findings.variances.items()},
            disagreement=_mean_tensor(trainer, pl_module, findings.disagreement).cpu(),
        )
        if trainer.is_global_zero:
            writers = tensorboard_writers(trainer)
            self._pages.show(writers, self._logged_step, shown, metrics)
        ratio = None
        if used == "RP" and variance.get("LR", 0.0) > 0:
            ratio = variance["RP"] / variance["LR"]
        disagreement = Disagreement(
            used,
            findings.guarded,
            None if difference is None else difference.folded(),
            particles,
            shown.disagreement,
            findings.rows,
        )
        self._say(trainer, self.alarm.check(signal[used], variance[used], ratio, disagreement))

    def _hint(self, trainer: Any, pl_module: Any, comparison: Comparison) -> None:
        """Say which parameters TP had better not weigh at."""
        # Gradients that it holds are not kept till the next look.
        stepped, self._stepped = self._stepped.found, SteppedParameters()
        if pl_module.automatic_optimization:  # perhaps in a later batch, which this one adds to
            stepped = set().union(*map(parameters_of, trainer.optimizers))
        hint = hint_at_outside(comparison.weighed, stepped, pl_module)
        if hint:
            _warn_once(f"{self._title()}: {hint}")

    def _report_successive(self, trainer: Any) -> None:
        """Log what three successive gradients say."""
        found = self._successive.estimate()
        if found is None:  # several optimizers, none of which has made three steps since
            return
        self._due = self._next(self._step)
        if self._due - self._step >= STEPS:
            self._successive.forget()  # none of them will be among the next ones
        signal = squared_signal(found.squared_norm, found.variance)
        of_used = {
            "gradient/variance": found.variance,
            "gradient/snr": signal_to_noise(signal, found.variance),
            "gradient/norm": math.sqrt(found.squared_norm),
            "gradient/not_finite": float(found.not_finite),
        }
        self._log(trainer, of_used)
        self._say(trainer, self.alarm.check(signal, found.variance))

    def _say(self, trainer: Any, found: Sequence[Words]) -> None:
        """Warn, and stop the training if that is wanted."""
        for words in found:
            stops = self.alarm.action == "stop" and not words.harmless
            does = "stops the training" if stops else "warns"
            rank_zero_warn(f"{self._title()} {does} at step {self._logged_step}: {words.text}")
            if stops:
                trainer.should_stop = True

    def _log(self, trainer: Any, metrics: dict[str, float]) -> None:
        self.last = {
            self._pages.tag(name): value for name, value in metrics.items() if not math.isnan(value)
        }
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics(self.last, step=self._logged_step)


def _monitors(trainer: Any) -> list[VarianceMonitor]:
    return [each for each in trainer.callbacks if isinstance(each, VarianceMonitor)]


def _refuse_equals(monitors: Sequence[VarianceMonitor]) -> None:
    """Raise where two monitors would look at one manager, or log under the same names."""
    for argument in ("attribute", "name"):
        values = [getattr(monitor, argument) for monitor in monitors]
        twice = [value for value in values if values.count(value) > 1]
        if twice:
            raise ValueError(
                f"callbacks: {len(twice)} VarianceMonitors have the {argument} {twice[0]!r}. Each "
                "needs a manager and a name of its own, such as VarianceMonitor("
                "attribute='critic_manager', name='critic')."
            )


def _logged_step(trainer: Any) -> int:
    """Return the step at which Lightning logs what the module does."""
    # Not public, but what all of Lightning's own callbacks log at.
    step: int = trainer.fit_loop.epoch_loop._batches_that_stepped
    return step


def _mean_over_ranks(trainer: Any, pl_module: Any, numbers: Iterable[float]) -> list[float]:
    tensor = torch.tensor([*numbers], dtype=torch.float64)
    return _mean_tensor(trainer, pl_module, tensor).tolist()


def _mean_tensor(trainer: Any, pl_module: Any, own: Tensor) -> Tensor:
    """Return the mean over the ranks, which must have tensors of one shape."""
    if trainer.world_size == 1:
        return own
    found: Tensor = trainer.strategy.reduce(own.to(pl_module.device), reduce_op="mean")
    return found


def _of_all_ranks(trainer: Any, pl_module: Any, own: Difference | None) -> Difference | None:
    """Return the difference of the mean over ranks' gradients."""
    if own is None:
        return None
    vector = _mean_tensor(trainer, pl_module, own.vector)
    (variance,) = _mean_over_ranks(trainer, pl_module, [own.variance])
    return Difference(vector, variance / trainer.world_size)


_warned: set[str] = set()


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        rank_zero_warn(message)
