"""The propagator: a forward and a backward computation that belong together (paper, Sec. 3.2).

Composite propagators are sequences (Sec. 3.3): :class:`ComboProp` applies several to one node;
:class:`~lightning_proppo.propagators.chain.ChainProp` gives each a node of its own.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from lightning_proppo.containers import MARKS, Container, Message, as_message
from lightning_proppo.errors import check_choice, check_names, did_you_mean
from lightning_proppo.initializers import ChainInit

_NOT_KNOWN_YET: Any = object()


class Propagator:
    """A computation forward and one backward, both over the information in a node.

    Subclasses override ``forward_impl(x, node, **options)``, which returns the node's contents (a
    dict; ``'output'`` is what the caller gets), and ``backward_impl(node, message)``, which
    returns a message (a dict, where ``'targets'`` may say who gets it, or a
    :class:`~lightning_proppo.containers.Message`). Other kinds of computation (Appendix B.1) are
    methods ``<kind>_impl(node, message)`` of the same form, activated by
    :meth:`PropagationManager.trigger`.

    Contents of a node that the tape itself reads: ``'output'``; ``'register_node'`` (False: no
    node is kept); ``'clear'`` (False: contents survive the backward pass); ``'targets'`` and
    ``'force_targets'``; ``'next_propagator'`` (the propagator, or its name, for the following
    call); ``'forward_message'`` (a message to nodes still to be made, which find it under
    ``'inbox'`` in the ``node`` argument of their ``forward_impl``).

    Args:
        **kwargs: default options of the forward computation.

    Raises:
        TypeError: for an option that ``forward_impl`` does not take.

    Attributes:
        uses_cost_gradient: whether costs without a graph are refused.
        loss_baseline: whether a baseline is subtracted at losses. False where samples subtract
            their own, or where the losses' values are not used.
        choices: by the name of an option of the forward computation that is one of several names,
            these names.
    """

    uses_cost_gradient: bool = False
    loss_baseline: bool = True
    choices: ClassVar[Mapping[str, Sequence[str]]] = {}
    default_init_kwargs: ClassVar[dict[str, Any]] = {}
    # Names of options, in the order of a call, that have been found to be known.
    _checked: frozenset[tuple[str, ...]] = frozenset()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__()
        cls.default_init_kwargs = {**cls.default_init_kwargs, **kwargs}

    def __init__(self, **kwargs: Any) -> None:
        options = {**type(self).default_init_kwargs, **kwargs}
        self._check_options(options)
        check_choices(self, options)
        self.default_forward_kwargs: dict[str, Any] = options

    def forward(self, x: Any, **kwargs: Any) -> Container:
        """Run the forward computation and return the contents of a new node.

        Raises:
            TypeError: for an unknown option, or if ``forward_impl`` returns no dict.
        """
        made = self._forward(x, kwargs)
        node = made if isinstance(made, Container) else Container(made)
        for name, value in MARKS.items():
            if name not in node:
                node[name] = value
        return node

    def contents_of_node(self, x: Any, kwargs: Mapping[str, Any]) -> dict[Any, Any] | Container:
        """Do what :meth:`forward` does, but leave what ``forward_impl`` returned as it is.

        Args:
            x: the input.
            kwargs: options; also ``"inbox"``, messages of earlier forward computations.

        Raises:
            TypeError: as :meth:`forward`.
        """
        if type(self).forward is not Propagator.forward:
            return self.forward(x, **kwargs)
        if not kwargs and _inherits(self.forward_impl, Propagator.forward_impl):
            return {}
        return self._forward(x, kwargs)

    def _forward(self, x: Any, kwargs: Mapping[str, Any]) -> dict[Any, Any] | Container:
        given: dict[str, Any] = {}
        options = self.default_forward_kwargs
        if kwargs:
            options = {**options, **kwargs}
            if "inbox" in kwargs:
                inbox = options.pop("inbox")
                if inbox is not None:
                    given["inbox"] = inbox
                kwargs = {name: value for name, value in kwargs.items() if name != "inbox"}
            names = tuple(kwargs)
            if names not in self._checked:
                self._check_options(kwargs)
                self._checked |= {names}
        made = self.forward_impl(x, given, **options)
        if not isinstance(made, (dict, Container)):
            raise TypeError(
                f"{type(self).__name__}.forward_impl must return a dict or a Container; "
                f"got {type(made).__name__}."
            )
        return made

    def forward_impl(self, x: Any, node: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Do nothing to ``x``; to be overridden."""
        del x, args, kwargs
        return {} if node is None else node

    def backward(self, node: Container, message: Container) -> Message:
        """Run the backward computation and return its message."""
        return self.compute("backward", node, message)

    def backward_impl(self, node: Any, message: Any) -> Any:
        """Pass the message on; to be overridden."""
        del node
        return Message(message)

    def compute(
        self, kind: str, node: Container, message: Container, reverse: bool = True
    ) -> Message:
        """Run any kind of computation and return its message.

        A propagator that does not know the kind passes the message on.
        """
        return as_message(self.raw_compute(kind, node, message, reverse), self)

    def raw_compute(self, kind: str, node: Container, message: Container, reverse: bool) -> Any:
        """Run ``<kind>_impl`` and return whatever it returns."""
        del reverse
        computation = getattr(self, f"{kind}_impl", None)
        return message if computation is None else computation(node, message)

    def activation(self, kind: str, reverse: bool) -> Callable[[Any, Any], Any] | None:
        """Return a function ``(node, message) -> whatever is sent`` for a run over a tape.

        It does what :meth:`compute` does, but leaves what the computation returned as it is.
        None: every message is passed on as it is.
        """
        if type(self).compute is not Propagator.compute:
            return lambda node, message: self.compute(kind, node, message, reverse=reverse)
        if passes_on(self, kind):
            return None
        if type(self).raw_compute is not Propagator.raw_compute:
            return lambda node, message: self.raw_compute(kind, node, message, reverse)
        return getattr(self, f"{kind}_impl", None)

    def attached(self, dist: Any) -> Tensor | None:
        """Return a sample [P, ...] that is left to PyTorch; None where samples make nodes."""
        del dist
        return None

    def plain_costs(self, node: Container) -> Tensor | None:
        """Return a loss node's costs [P, 1] if their mean's gradient is all it sends; else None."""
        del node
        return None

    def loss_propagator(self) -> Propagator:
        """Return the propagator for losses of rollouts that use this propagator.

        It back-propagates the costs' gradient in any case: a cost that depends on parameters
        directly (an action's price, say) has a part that no sample's score covers.
        """
        from lightning_proppo.propagators.loss import LossProp

        return LossProp(baseline=self.loss_baseline)

    def forward_options(self) -> frozenset[str] | None:
        """Return the names of the forward computation's options; None if it takes any."""
        return _options_of(type(self))  # type: ignore[arg-type]

    def _check_options(self, kwargs: Mapping[str, Any]) -> None:
        if not kwargs:
            return
        known = self.forward_options()
        if known is not None:
            check_names(type(self).__name__, kwargs, known)


@functools.cache
def _options_of(cls: type[Propagator]) -> frozenset[str] | None:
    if cls.forward_impl is Propagator.forward_impl:
        return frozenset()
    parameters = inspect.signature(cls.forward_impl).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return None
    return _named_options(cls.forward_impl)


def _named_options(forward_impl: Callable[..., Any]) -> frozenset[str]:
    """Return the names of the options, without a ``**kwargs`` that takes all others."""
    # The first three are self, x and node.
    parameters = list(inspect.signature(forward_impl).parameters.values())[3:]
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return frozenset(p.name for p in parameters if p.kind not in variable)


class SequenceProp(Propagator):
    """A propagator made of others.

    The class keyword ``propagators`` names the slots (a :class:`ChainInit`, which stays the class's
    attribute of that name; an instance's is its list of propagators). Other class keywords are
    default arguments. Keyword arguments of the constructor that name a slot configure it, the
    rest are forward options.

    Args:
        propagators: propagators that stand instead of the slots.
        **kwargs: see above.

    Raises:
        TypeError: for a name that is neither a slot nor an option.
    """

    slots: ClassVar[ChainInit] = ChainInit()
    propagators: Any = slots
    _options: Any = _NOT_KNOWN_YET

    def __init_subclass__(cls, propagators: ChainInit | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if propagators is not None:
            cls.slots = cls.propagators = propagators

    def __init__(self, propagators: Sequence[Propagator] = (), **kwargs: Any) -> None:
        arguments = {**type(self).default_init_kwargs, **kwargs}
        if propagators:
            self._check_are_propagators(propagators)
            self.propagators = list(propagators)
            options = arguments
        else:
            slots = {name: arguments[name] for name in self.slots if name in arguments}
            options = {name: value for name, value in arguments.items() if name not in slots}
            self.propagators = self.slots(**slots)
        self._check_options(options)
        check_choices(self, options)
        self.default_forward_kwargs = options

    def forward_options(self) -> frozenset[str] | None:
        """Return the names of all constituents' options; None if one of them takes any."""
        if self._options is _NOT_KNOWN_YET:
            self._options = self._gather_options()
        known: frozenset[str] | None = self._options
        return known

    def _gather_options(self) -> frozenset[str] | None:
        every = [propagator.forward_options() for propagator in self.propagators]
        # A forward_impl that a subclass overrides may have options of its own.
        for cls in type(self).__mro__[: type(self).__mro__.index(SequenceProp)]:
            if "forward_impl" in vars(cls):
                every.append(_named_options(vars(cls)["forward_impl"]))
        known = [options for options in every if options is not None]
        return frozenset().union(*known) if len(known) == len(every) else None

    def _check_options(self, kwargs: Mapping[str, Any]) -> None:
        known = self.forward_options()
        if known is None:
            return
        for name in kwargs:
            if name not in known:
                slots = ", ".join(self.slots) or "none"
                options = ", ".join(sorted(known)) or "none"
                raise TypeError(
                    f"{type(self).__name__} got an unknown argument {name!r}; its slots are: "
                    f"{slots}; its forward options are: {options}."
                    f"{did_you_mean(name, [*self.slots, *known])}"
                )

    @staticmethod
    def _check_are_propagators(propagators: Any) -> None:
        if not isinstance(propagators, (list, tuple)):
            raise TypeError(
                f"propagators must be a list of instances of Propagator; got {propagators!r}."
            )
        for position, propagator in enumerate(propagators):
            if not isinstance(propagator, Propagator):
                raise TypeError(
                    f"propagators[{position}] must be an instance of Propagator; "
                    f"got {propagator!r}."
                )


def check_choices(propagator: Propagator, options: Mapping[str, Any]) -> None:
    """Raise if a default option that is to be one of several names is another; None is let through.

    Constituents' options are looked at too. What is given with a sample, the forward computation
    checks.

    Raises:
        ValueError: with a suggestion.
    """
    for name, known in propagator.choices.items():
        if options.get(name) is not None:
            check_choice(name, options[name], known)
    for part in getattr(propagator, "propagators", ()):
        check_choices(part, options)


def options_for(propagator: Propagator, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a constituent's defaults, updated by those of ``kwargs`` that it takes."""
    known = propagator.forward_options()
    taken = kwargs if known is None else {k: v for k, v in kwargs.items() if k in known}
    return {**propagator.default_forward_kwargs, **taken}


class ComboProp(SequenceProp):
    """Several propagators at one node: forward from left to right, backward from right to left.

    Each sees the node and the message as the ones before it left them.
    """

    def forward_impl(self, x: Any, node: Any = None, **kwargs: Any) -> Any:
        """Apply the forward computations in order, gathering their contents in one node."""
        node = {} if node is None else node
        for propagator in self.propagators:
            if _inherits(propagator.forward_impl, Propagator.forward_impl):
                continue  # it would hand the node back as it is
            made = propagator.forward_impl(x, node, **options_for(propagator, kwargs))
            if made is node:
                continue
            if not isinstance(made, (dict, Container)):
                raise TypeError(
                    f"{type(propagator).__name__}.forward_impl must return a dict or a Container; "
                    f"got {type(made).__name__}."
                )
            node.update(made)
        return node

    def backward_impl(self, node: Any, message: Any) -> Any:
        """Apply the backward computations in reverse order, each on the message so far."""
        return self._apply("backward", node, Container(message), True)

    def raw_compute(self, kind: str, node: Container, message: Container, reverse: bool) -> Any:
        """Run ``<kind>_impl`` if there is one, else the constituents' in sequence."""
        computation = getattr(self, f"{kind}_impl", None)
        if computation is not None:
            return computation(node, message)
        return self._apply(kind, node, Container(message), reverse)

    def activation(self, kind: str, reverse: bool) -> Callable[[Any, Any], Any] | None:
        """Return a function that writes into the message that it is given, and may return it."""
        own = getattr(self, f"{kind}_impl", None)
        overridden = own is not None and not _inherits(own, ComboProp.backward_impl)
        if overridden or not (
            _inherits(self.compute, Propagator.compute)
            and _inherits(self.raw_compute, ComboProp.raw_compute)
        ):
            return super().activation(kind, reverse)
        parts = self._parts(kind, reverse)

        def activate(node: Any, message: Any) -> Any:
            if type(message) is not Container:
                message = Container(message)
            total = self._in_turn(parts, kind, node, message, reverse)
            return message if total is None else total

        return activate

    def _parts(self, kind: str, reverse: bool) -> list[Propagator]:
        """Return the constituents that do not just pass the message on, in order."""
        every = reversed(self.propagators) if reverse else self.propagators
        return [propagator for propagator in every if not passes_on(propagator, kind)]

    def is_made_of(self, *classes: type[Propagator]) -> bool:
        """Return whether every constituent is of just one of these classes, with its defaults."""
        return all(
            type(part) in classes and not part.default_forward_kwargs for part in self.propagators
        )

    def _apply(self, kind: str, node: Container, message: Container, reverse: bool) -> Message:
        total = self._in_turn(self._parts(kind, reverse), kind, node, message, reverse)
        return Message(container=message) if total is None else total

    @staticmethod
    def _in_turn(
        parts: Sequence[Propagator], kind: str, node: Container, main: Container, reverse: bool
    ) -> Message | None:
        """Apply computations, each on the message so far, which is written into.

        Returns:
            What is to be sent; None for ``main`` itself, which is the ordinary case.
        """
        total: Message | None = None
        for propagator in parts:
            if total is not None:
                main = total.main()
            sent = propagator.raw_compute(kind, node, main, reverse)
            if sent is None:
                continue
            if total is None:
                # What all that follows this comes down to.
                if type(sent) is dict and "targets" not in sent:
                    main.update(sent)
                    continue
                if sent is main and "targets" not in main:
                    continue
                total = Message(container=main)
            if sent is main:
                # What is handed back as it came has been changed in place, if at all.
                targets = main.pop("targets", None)
                if targets is not None:
                    total.retarget(next(iter(total.targets())), targets)
                continue
            sent = as_message(sent, propagator)
            if not reverse:
                # The node after and no target at all are one and the same slot of the message.
                if 1 in sent.targets() and None in total.targets():
                    total.retarget(None, 1)
                elif None in sent.targets() and 1 in total.targets():
                    sent.retarget(None, 1)
            total.update(sent)
        return total


def passes_on(propagator: Propagator, kind: str) -> bool:
    """Return whether a propagator's computation does nothing but to pass the message on."""
    return (
        kind == "backward"
        and _inherits(propagator.backward_impl, Propagator.backward_impl)
        and _inherits(propagator.raw_compute, Propagator.raw_compute)
    )


def _inherits(method: Any, function: Callable[..., Any]) -> bool:
    """Return whether a bound method is still the function of the base class."""
    return getattr(method, "__func__", None) is function
