"""Parts of an agent that can be exchanged, and told in plain values.

A configuration names a part as the command line does, by its class and its arguments::

    {"class_path": "proppo_agents.MLPPolicy", "init_args": {"hidden": [64, 64]}}

A checkpoint keeps the same of each part, so that it can be read without running code of its own.
"""

from __future__ import annotations

import inspect
import pkgutil
from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from lightning_proppo.errors import check_names, did_you_mean


@dataclass(frozen=True)
class Spaces:
    """What the parts of an agent must know of the environment.

    Attributes:
        observation_size: D.
        action_size: A; actions are in [-1, 1].
        angles: the coordinates of the observation that are angles (rad), ascending.
        encoded_angles: pairs of coordinates (sine, cosine) of angles that the environment itself
            observes in this way.
    """

    observation_size: int
    action_size: int
    angles: tuple[int, ...] = ()
    encoded_angles: tuple[tuple[int, int], ...] = ()

    @property
    def encoded_size(self) -> int:
        """The size of an observation with its angles as sines and cosines."""
        return self.observation_size + len(self.angles)


class Part(nn.Module, ABC):
    """A module that is made in two steps: with its options, and then for an environment.

    A final class keeps each argument of its constructor under the argument's name.
    """

    def description(self) -> dict[str, Any]:
        """Return its class and the arguments that it was made with, in plain values."""
        arguments = {
            name: plain_values(getattr(self, name)) for name in _argument_names(type(self))
        }
        return {
            "class_path": f"{type(self).__module__}.{type(self).__qualname__}",
            "init_args": arguments,
        }


def plain_values(value: Any) -> Any:
    """Return a value with its parts described, and its tuples as lists."""
    if isinstance(value, Part):
        return value.description()
    if isinstance(value, (tuple, list)):
        return [plain_values(item) for item in value]
    return value


Made = TypeVar("Made", bound=Part)


def make_part(name: str, given: Any, kind: type[Made]) -> Made:
    """Return a part, made of its description if it is not there yet.

    Args:
        name: of the argument, for messages.
        given: the part, or what :meth:`Part.description` returns.
        kind: what it must be.

    Raises:
        TypeError: if it is neither; for arguments that its class does not have.
        ValueError: if there is no such class, or it is no such part.
    """
    if isinstance(given, kind):
        return given
    if not isinstance(given, Mapping) or not isinstance(given.get("class_path"), str):
        raise TypeError(
            f"{name} must be a {kind.__name__}, or a dict with its class_path and init_args; got "
            f"{type(given).__name__}."
        )
    check_names(f"{name}'s description", given, ("class_path", "init_args"))
    path = given["class_path"]
    known = _known(kind)
    try:
        found = known.get(path) or pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{name}: there is no class {path!r}; known are {', '.join(sorted(known))}, and any "
            f"{kind.__name__} by its dotted path.{did_you_mean(path.rpartition('.')[2], known)}"
        ) from error
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise ValueError(f"{name}: {path} is no {kind.__name__}.")
    arguments = given.get("init_args") or {}
    check_names(f"{name} ({found.__name__})", arguments, _argument_names(found))
    made: Made = found(**arguments)
    return made


def _argument_names(kind: type) -> list[str]:
    # A class without an __init__ of its own has Module's, which takes anything.
    found = inspect.signature(kind).parameters.values()
    return [one.name for one in found if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]


def _known(kind: type[Made]) -> dict[str, type[Made]]:
    """Return the final classes below ``kind`` that have been imported, by their names."""
    found = {}
    for below in kind.__subclasses__():
        found.update(_known(below))
        if not inspect.isabstract(below):
            found[below.__name__] = below
    return found
