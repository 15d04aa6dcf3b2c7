"""The propagation manager: records rollouts on tapes and hands their gradients over."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from lightning_proppo.containers import MARKS, Container, Message, Node
from lightning_proppo.disagreement import DisagreementMemory
from lightning_proppo.engine.backward_pass import active_pass
from lightning_proppo.engine.costs import RolloutCosts, mean_cost
from lightning_proppo.engine.cuts import explain_change_in_place
from lightning_proppo.engine.handover import ClosedTape, hand_over
from lightning_proppo.engine.tape import Tape
from lightning_proppo.errors import PropagationError, did_you_mean
from lightning_proppo.propagators import (
    BackPropagator,
    Propagator,
    estimator_names,
    make_estimator,
)
from lightning_proppo.ranks import ALONE, activate_ranks, all_ranks

_TERMINAL: Any = object()
_TRANSFORM = re.compile("functorch|vmap")  # in PyTorch's messages


class PropagationManager:
    """Routes the samples and costs of a rollout through propagators (Appendix B.1; listing 1).

    A rollout is recorded by :meth:`sample` (or :meth:`forward`) and :meth:`append_loss`;
    :meth:`loss` closes it and returns a scalar whose ``backward()`` *is* the propagation. In a
    plain loop :meth:`backward` does both. Nothing is recorded under ``torch.no_grad()``.

    Args:
        default_propagator: what computes at nodes for which nothing else is said: a propagator,
            or an estimator's name (:func:`~lightning_proppo.propagators.make_estimator` lists
            them). None: :class:`BackPropagator`.
        loss_propagator: what computes at losses: a propagator; None: what the default propagator
            asks for.
        terminal_propagator: what computes at a node before the first, where messages that remain
            at the end of a pass arrive; None: no such node. Default: :class:`BackPropagator`.
        sync: where ``torch.distributed`` has been initialized, compute baselines, weights and
            fitted Gaussians from the particles of all ranks: N ranks of P particles give the
            estimate of one process with N P. Every rank must then record the same rollouts. False:
            each rank by itself. (Evaluations, without grad, are always by themselves.)
        **options: of the named estimator's samples, e.g. ``noise="quasi-random"``.

    Attributes:
        statistics: of the last pass. TP leaves ``statistics["lr_weight"]``, the weight on LR of
            each sample (mean over what is weighed): a list of [], last sample first.
        last_cost: the mean over particles of the last rollout's summed costs, []; None before.
        disagreement: where RP and LR have disagreed in earlier gradients of an estimator that
            mixes them; it has ``state_dict()``, ``load_state_dict()`` and ``forget()``.

    Raises:
        TypeError: if one of them is no propagator, or ``sync`` no bool; for an option that the
            estimator does not have.
        ValueError: for an unknown name.
    """

    def __init__(
        self,
        default_propagator: str | Propagator | None = None,
        loss_propagator: Propagator | None = None,
        terminal_propagator: Propagator | None = _TERMINAL,
        sync: bool = True,
        **options: Any,
    ) -> None:
        if not isinstance(sync, bool):
            raise TypeError(f"sync must be True or False; got {sync!r}.")
        named_loss = None
        if isinstance(default_propagator, str):
            default_propagator, named_loss = make_estimator(default_propagator, **options)
        elif options:
            raise TypeError(
                f"options ({', '.join(options)}) go with an estimator's name; give them to the "
                f"propagator itself. Got default_propagator={default_propagator!r}."
            )
        if default_propagator is None:
            default_propagator = BackPropagator()
        if terminal_propagator is _TERMINAL:
            terminal_propagator = BackPropagator()
        for name, value in (
            ("default_propagator", default_propagator),
            ("loss_propagator", loss_propagator),
            ("terminal_propagator", terminal_propagator),
        ):
            if value is not None:
                _check_propagator(name, value)
        self.default_propagator = default_propagator
        self.loss_propagator = loss_propagator or named_loss or default_propagator.loss_propagator()
        self.terminal_propagator = terminal_propagator
        self.sync = sync
        self.propagators: dict[str, Propagator] = {}
        self.statistics: dict[str, list[Tensor]] = {}
        self.last_cost: Tensor | None = None
        # How many losses were made that no backward pass has reached; the callback looks.
        self.undifferentiated = 0
        self.given_by_callback = False
        self.disagreement = DisagreementMemory()
        self._generation = 0
        self._forget_rollout()

    def __getstate__(self) -> dict[str, Any]:
        """A copy, or a manager in another process, starts without a rollout."""
        rollout = (
            "_tape",
            "_finished",
            "_costs",
            "_unrecorded_costs",
            "_next",
        )
        state = {name: value for name, value in vars(self).items() if name not in rollout}
        return {**state, "undifferentiated": 0}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget_rollout()

    # -- recording ---------------------------------------------------------------------------

    @property
    def nodes(self) -> list[Node]:
        """The nodes of the current rollout (after a pass: of the last), terminal node first."""
        return self._tape.nodes

    def size(self) -> int:
        """Return the number of nodes, with the terminal one."""
        return len(self._tape)

    @property
    def recorded(self) -> int:
        """How many calls were recorded since the last loss."""
        return 0 if self._finished else self._tape.calls

    def reset(self) -> None:
        """Forget the rollout that is being recorded; needed where one is abandoned.

        Losses that have been made stay differentiable, but nobody is told any more if they are
        not: call it in a ``training_step`` that skips a batch on purpose.
        """
        self.undifferentiated = 0
        self._generation += 1
        self._forget_rollout()

    def _forget_rollout(self) -> None:
        self._tape = Tape(self.terminal_propagator)
        self._tape.memory = self.disagreement
        self._finished = False
        self._costs = RolloutCosts()
        self._unrecorded_costs: list[Tensor] = []  # their means, of an evaluation
        # What the last call chose for the next one: recorded calls and evaluations apart.
        self._next: dict[bool, str | Propagator | None] = {True: None, False: None}

    @contextmanager
    def rollout(self) -> Iterator[PropagationManager]:
        """Record a rollout, forgetting what was left before, and all of it on an exception."""
        self._forget_rollout()
        try:
            yield self
        except BaseException as error:
            self._forget_rollout()
            explain_change_in_place(error)
            raise

    def add_propagator(self, name: str, propagator: Propagator) -> None:
        """Make a propagator available under a name.

        Raises:
            TypeError: if it is no propagator, or the name no string.
        """
        if not isinstance(name, str):
            raise TypeError(f"name must be a string; got {name!r}.")
        _check_propagator("propagator", propagator)
        self.propagators[name] = propagator

    def forward(
        self,
        x: Any,
        force_targets: int | list[int] | None = None,
        local_propagator: str | Propagator | None = None,
        get_node: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Run a propagator's forward computation and record its node.

        Args:
            x: the input, particles first: [P, ...].
            force_targets: where the node's messages go, whatever they say: nodes relative to it
                (-1: the one before).
            local_propagator: what computes here, or its name; default: what the node before chose,
                else the default propagator.
            get_node: return the node too.
            **kwargs: the propagator's options.

        Returns:
            The output, or with ``get_node`` a pair of output and node.

        A call that raises ends the rollout: what was recorded of it is forgotten, so that the next
        one does not continue it.

        Raises:
            KeyError: for an unknown name.
            TypeError, ValueError: for an unknown option, or what the propagator refuses; for
                ``force_targets`` before the rollout's first node.
        """
        recording = torch.is_grad_enabled()
        try:
            chosen = self._next[recording] if local_propagator is None else local_propagator
            propagator = self.default_propagator if chosen is None else self._find(chosen)
            if "dist" in kwargs:
                _check_samples(propagator)
            tape = self._open_tape() if recording else Tape()
            if force_targets is not None and recording:
                tape.check_reach(force_targets)
            if tape.ranks is ALONE:
                node = tape.record(x, propagator, kwargs, force_targets, recording)
            else:
                with activate_ranks(tape.ranks):
                    node = tape.record(x, propagator, kwargs, force_targets, recording)
        except BaseException as error:
            self._end_by_error()
            _refuse_transforms(error)
            explain_change_in_place(error)
            raise
        self._next[recording] = tape.next_propagator
        output = None if node.held is MARKS else node.get("output")
        return (output, node) if get_node else output

    def sample(self, dist: Distribution, **kwargs: Any) -> Tensor:
        """Draw a sample and record it.

        RP and TP need ``rsample``; LR takes every distribution. Samples are drawn, and their
        log-densities computed, in 32 bits at least (all but ``"RP"``, which is what PyTorch does).
        Under autocast a sample stays float32; in a pure 16-bit model it is rounded, once drawn, to
        the dtype of the distribution's parameters. Samples of a :class:`Categorical` are integers.

        Args:
            dist: any ``torch.distributions.Distribution`` with particles first: its samples are
                [P, ...], its batch and event shapes of any number of axes.
            **kwargs: options as for :meth:`forward`, e.g. ``ivw_target`` with TP.

        Returns:
            [P, ...].

        Raises:
            TypeError: if the estimator needs ``rsample`` and the distribution has none; if the
                propagator draws no samples.
            ValueError: if there are no particles; for LR and TP, if the distribution's support
                depends on parameters (e.g. a uniform one's learnt edges), which no score tells of.
        """
        if not kwargs and self._next[True] is None and torch.is_grad_enabled():
            try:
                sample = self.default_propagator.attached(dist)
            except BaseException as error:
                self._end_by_error()
                _refuse_transforms(error)
                raise
            if sample is not None:
                self._open_tape().calls += 1
                return sample
        recorded: Tensor = self.forward(None, dist=dist, **kwargs)
        return recorded

    def append_loss(
        self, loss_node: Any, loss_propagator: Propagator | str | None = None, **kwargs: Any
    ) -> Tensor:
        """Record the particles' costs at this step.

        Args:
            loss_node: the costs, [P] or [P, 1]; or with ``lossfunc`` its argument (a dict gives
                keyword arguments).
            loss_propagator: what computes here; default: the manager's.
            **kwargs: the propagator's options, e.g. ``lossfunc``.

        Returns:
            The costs, detached, [P, 1].

        Raises:
            TypeError, ValueError: if there is not one floating point cost for each particle.
            ValueError: if they are on another device than earlier ones.
        """
        chosen = self.loss_propagator if loss_propagator is None else loss_propagator
        costs, node = self.forward(loss_node, local_propagator=chosen, get_node=True, **kwargs)
        if not isinstance(costs, Tensor) or costs.dim() == 0:
            self._end_by_error()
            raise TypeError(
                f"{type(node.propagator).__name__} must output one cost for each particle; "
                f"got {costs!r}."
            )
        if not torch.is_grad_enabled():
            self._unrecorded_costs.append(mean_cost(node))
            return costs
        try:
            self._costs.add(node)
        except BaseException:
            self._end_by_error()
            raise
        return costs

    # -- differentiation ---------------------------------------------------------------------

    def loss(self, costs: Any = None, **kwargs: Any) -> Tensor:
        """Close the rollout and return its mean cost, whose gradient the propagators compute.

        Args:
            costs: appended first, as by :meth:`append_loss`; None if all costs were appended.
            **kwargs: options for :meth:`append_loss`.

        Returns:
            A scalar: the mean over particles of the sum of costs.

        Raises:
            PropagationError: if nothing was recorded since the last loss; if there are no costs;
                if the estimator needs the costs' gradient and they have none; if the costs depend
                on another rollout's samples; inside a transform of ``torch.func``.
            ValueError: if a cost is not finite. (An evaluation, without grad, has its NaN.)
        """
        if not torch.is_grad_enabled():
            if costs is not None:
                self.append_loss(costs, **kwargs)
            totals, self._unrecorded_costs = self._unrecorded_costs, []
            if not totals:
                raise PropagationError("loss: there are no costs; pass costs, or append_loss them.")
            return torch.stack(totals).sum()
        if self.recorded == 0:
            raise PropagationError(
                "loss: nothing was recorded since the last loss. Draw the rollout's samples with "
                "manager.sample(...), and call loss once for each rollout."
            )
        try:
            value = self._total_cost("loss", costs, kwargs)
            closed = None if self._is_plain() else ClosedTape(self._tape, "loss")
        except RuntimeError as error:
            _refuse_transforms(error)
            raise
        finally:
            self._forget_rollout()
        self.last_cost = value.detach()
        generation = self._generation

        def report(statistics: dict[str, list[Tensor]], first: bool) -> None:
            self.statistics = statistics
            if first and generation == self._generation:
                self.undifferentiated -= 1

        # Without parameters there is nothing to differentiate, and no pass will ever come.
        if closed is not None:
            try:
                handed = hand_over(closed, report, self.last_cost)
            except RuntimeError as error:
                _refuse_transforms(error)
                raise
            self.undifferentiated += bool(closed.parameters)
            return handed
        if value.requires_grad:
            self.undifferentiated += 1
            value.register_hook(_OnFirstCall(report))
        return value

    def backward(
        self,
        loss: Any = None,
        clear_nodes: bool = False,
        message: Container | dict[str, Any] | None = None,
    ) -> Message:
        """Run the propagators backward over the rollout; gradients land in ``param.grad``.

        Args:
            loss: costs, appended first; None if all were appended.
            clear_nodes: forget the nodes afterwards (else they can be looked at until the next
                rollout begins; nothing of them is used again in either case).
            message: put into the last node's mailbox; or a :class:`Message` with targets, where -1
                is the last node.

        Returns:
            The messages that remain at the end.

        Raises:
            PropagationError: see :meth:`loss`.
            TypeError: if ``message`` is no container.
        """
        try:
            start = _container(message)
        except TypeError:
            self._end_by_error()
            raise
        if loss is None and self._tape.parent is not None and self._tape.root.running:
            # A propagator keeps this manager in its node, and the rollout that the node belongs
            # to is being differentiated.
            return self._tape.run("backward", start)
        if self.recorded == 0 and loss is None and message is None:
            raise PropagationError(
                "backward: nothing was recorded since the last loss. Record a rollout with "
                "manager.sample(...) and manager.append_loss(...) for each backward."
            )
        if self._finished:
            self._forget_rollout()
        if loss is None and not self._costs:
            closed = ClosedTape(self._tape, "backward", takes_more=True)
        else:
            try:
                self.last_cost = self._total_cost("backward", loss, {}).detach()
                closed = ClosedTape(self._tape, "backward", takes_more=True)
            finally:
                self._forget_rollout()
        tape = closed.tape
        try:
            with torch.enable_grad():
                found, remaining, self.statistics = closed.gradients(False, start)
        finally:
            self._forget_rollout()
        pairs = [
            (parameter, gradient)
            for parameter, gradient in zip(closed.parameters, found, strict=True)
            if gradient is not None
        ]
        if pairs:
            torch.autograd.backward([p for p, _ in pairs], [g for _, g in pairs])
        if not clear_nodes:
            self._tape, self._finished = tape, True
        return remaining

    def trigger(
        self,
        kind: str,
        message: Container | dict[str, Any] | None = None,
        reverse: bool = True,
    ) -> Message:
        """Run another kind of computation over the recorded nodes (Appendix B.1).

        Each node's propagator runs its ``<kind>_impl(node, message)``; the tape stays open.

        Args:
            kind: the computation's name; not ``"forward"`` or ``"backward"``.
            message: put into the first mailbox.
            reverse: from the last node to the first; else from the first to the last.

        Returns:
            The messages that remain at the end.

        Raises:
            TypeError: if ``kind`` is no string or ``message`` no container.
            ValueError: if no propagator on the tape knows the kind.
        """
        if not isinstance(kind, str):
            raise TypeError(f"kind must be a computation's name; got {kind!r}.")
        if kind in ("forward", "backward"):
            raise ValueError(f"{kind} is no kind for trigger; call manager.{kind}(...).")
        if not any(_knows(node.propagator, kind) for node in self._tape.nodes):
            raise ValueError(
                f"no propagator on the tape knows a computation {kind!r}: none has a method "
                f"{kind}_impl(node, message)."
            )
        return self._tape.run(kind, _container(message), reverse)

    # -- inner -------------------------------------------------------------------------------

    def _open_tape(self) -> Tape:
        if self._finished:
            self._forget_rollout()
        tape = self._tape
        if tape.calls == 0 and self.sync:
            # Asked for each rollout: the process group may be younger than the manager.
            tape.ranks = all_ranks()
        return tape

    def _find(self, chosen: str | Propagator) -> Propagator:
        """Return the propagator that is given itself or by its name."""
        if isinstance(chosen, str):
            if chosen not in self.propagators:
                raise KeyError(
                    f"no propagator is named {chosen!r}; the names are "
                    f"{', '.join(self.propagators) or 'none'}; add one with add_propagator."
                    f"{did_you_mean(chosen, self.propagators)}"
                )
            return self.propagators[chosen]
        _check_propagator("local_propagator", chosen)
        return chosen

    def _end_by_error(self) -> None:
        """Forget what has been recorded, or evaluated."""
        if torch.is_grad_enabled():
            self._forget_rollout()
        else:
            self._unrecorded_costs = []

    def _is_plain(self) -> bool:
        """Return whether to differentiate the mean cost is all that the propagators would do."""
        return (
            self._costs.only_plain
            and self._tape.recorded == len(self._costs)
            and type(self.terminal_propagator) in (BackPropagator, type(None))
        )

    def _total_cost(self, name: str, costs: Any, kwargs: dict[str, Any]) -> Tensor:
        """Return the mean cost of the rollout, with its graph where costs are plain."""
        if active_pass() is not None:
            raise PropagationError(f"{name}: a backward pass is running already.")
        if costs is not None:
            self.append_loss(costs, **kwargs)
        if not self._costs:
            raise PropagationError(f"{name}: there are no costs; pass costs, or append_loss them.")
        if self.default_propagator.uses_cost_gradient and not self._costs.have_graph:
            raise PropagationError(
                f"{name}: {type(self.default_propagator).__name__} differentiates the costs, "
                "but they have no graph. Compute them from the samples with torch operations "
                "(no detach(), no numpy), or use LR."
            )
        ranks = self._tape.ranks
        value = self._costs.total(name, self._tape.calls, ranks)
        if ranks is not ALONE and not self._is_plain():
            self._costs.share_means(ranks)
        return value


class _OnFirstCall:
    """A gradient hook that reports a backward pass, without statistics."""

    def __init__(self, report: Callable[[dict[str, list[Tensor]], bool], None]) -> None:
        self.report = report
        self.first = True

    def __call__(self, gradient: Tensor) -> None:
        """Report; the gradient is left as it is."""
        del gradient
        self.report({}, self.first)
        self.first = False


def _check_propagator(name: str, value: Any) -> None:
    if not isinstance(value, Propagator):
        hint = " (instantiate the class)" if isinstance(value, type) else ""
        raise TypeError(f"{name} must be a Propagator{hint}; got {value!r}.")


def _check_samples(propagator: Propagator) -> None:
    options = propagator.forward_options()
    if options is not None and "dist" not in options:
        raise TypeError(
            f"{type(propagator).__name__} draws no samples from a dist; make the manager with an "
            f"estimator ({', '.join(estimator_names())}), or pass local_propagator."
        )


def _refuse_transforms(error: BaseException) -> None:
    """Raise if an error comes of a transform of ``torch.func`` around a rollout.

    Raises:
        PropagationError: naming what to call.
    """
    # Known only afterwards: what is left to PyTorch may be transformed.
    transformed = torch._C._are_functorch_transforms_active()
    if transformed and isinstance(error, RuntimeError) and _TRANSFORM.search(str(error)):
        raise PropagationError(
            "a rollout cannot be transformed by torch.func (grad, vmap, jacrev, ...): its gradient "
            "is what propagators compute, not what these derive. Call loss.backward() or "
            "torch.autograd.grad(loss, parameters) outside of them; make several rollouts the "
            "particles of one."
        ) from error


def _container(message: Container | dict[str, Any] | None) -> Container | None:
    if isinstance(message, dict):
        return Container(message)
    if message is not None and not isinstance(message, Container):
        raise TypeError(f"message must be a Message, a Container or a dict; got {message!r}.")
    return message


def _knows(propagator: Propagator | None, kind: str) -> bool:
    if hasattr(propagator, f"{kind}_impl"):
        return True
    return any(_knows(part, kind) for part in getattr(propagator, "propagators", ()))
