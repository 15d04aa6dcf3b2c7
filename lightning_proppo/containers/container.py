"""A mapping from names to contents.

Most values are plain, and a rollout has a dozen of them at every node. A container therefore keeps
a plain value as it is and makes a :class:`Content` of it only for who asks for contents
(:meth:`Container.get_contents`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lightning_proppo.containers.contents import Content, merged, twin_of, value_of


class Container:
    """A mapping from names to contents; reading a name gives the plain value.

    Args:
        cont_dict: initial contents (a container's keep their kind); they win over ``kwargs`` of
            the same name.
        **kwargs: more initial contents.
    """

    __slots__ = ("_contents",)

    # Contents, or plain values instead of contents of the plain kind.
    _contents: dict[Any, Any]

    def __init__(
        self, cont_dict: Mapping[Any, Any] | Container | None = None, **kwargs: Any
    ) -> None:
        for key, item in kwargs.items():
            if isinstance(item, Content):
                kwargs[key] = item.copy()
        if isinstance(cont_dict, Container):
            kwargs.update(cont_dict._twins())
        elif cont_dict is not None:
            for key, item in dict(cont_dict).items():
                kwargs[key] = item.copy() if isinstance(item, Content) else item
        self._contents = kwargs

    def clear(self) -> None:
        """Forget all contents."""
        self._contents.clear()

    def get_contents(self) -> dict[Any, Any]:
        """Return the mapping from names to :class:`Content` objects."""
        contents = self._contents
        for key, item in contents.items():
            if not isinstance(item, Content):
                contents[key] = Content(item)
        return contents

    def set_content(self, key: Any, value: Any) -> None:
        """Set ``key``; a content that is there keeps its kind, a new one brings its own."""
        contents = self._contents
        if key not in contents:
            contents[key] = value.copy() if isinstance(value, Content) else value
        elif isinstance(contents[key], Content):
            contents[key].set(value)
        else:
            contents[key] = value_of(value)

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the value of ``key``, or ``default`` where there is none."""
        return self[key] if key in self._contents else default

    def keys(self) -> Any:
        """Return the names."""
        return self._contents.keys()

    def items(self) -> Iterator[tuple[Any, Any]]:
        """Iterate over names and plain values."""
        return ((key, self[key]) for key in self.keys())

    def values(self) -> Iterator[Any]:
        """Iterate over plain values."""
        return (self[key] for key in self.keys())

    def pop(self, key: Any, *default: Any) -> Any:
        """Remove ``key`` and return its plain value (or ``default``)."""
        if key not in self._contents and default:
            return default[0]
        return value_of(self._contents.pop(key))

    def update(self, container: Container | Mapping[Any, Any]) -> None:
        """Update content by content: names that are taken follow their content's own rule.

        A message counts as the contents for all of its targets.

        Raises:
            TypeError: for anything but a container or a mapping.
        """
        if isinstance(container, Container):
            for part in container._parts():
                self._update(part._twins())
        elif isinstance(container, Mapping):
            self._update(dict(container))
        else:
            raise TypeError(
                f"a container is updated with a Container or a dict; got {container!r}."
            )

    def _update(self, arrived: Mapping[Any, Any]) -> None:
        contents = self._contents
        for key, value in arrived.items():
            if key not in contents:
                contents[key] = value.copy() if isinstance(value, Content) else value
            elif isinstance(contents[key], Content):
                contents[key].update(value)
            else:
                contents[key] = merged(contents[key], value_of(value))

    def _parts(self) -> Iterable[Container]:
        """Return the containers whose contents are this one's."""
        return (self,)

    def _twins(self) -> dict[Any, Any]:
        """Return the contents for another container."""
        return {key: twin_of(item) for key, item in self._contents.items()}

    def _copies(self) -> dict[Any, Any]:
        """Return the contents for a copy of this container."""
        return self._twins()

    def __copy__(self) -> Container:
        twin = type(self).__new__(type(self))
        for cls in type(self).__mro__:
            for name in getattr(cls, "__slots__", ()):
                setattr(twin, name, getattr(self, name))
        twin._contents = self._copies()
        return twin

    def copy(self) -> Container:
        """Return a container of the same kind that can be updated independently."""
        return copy.copy(self)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self._contents)

    def __getitem__(self, key: Any) -> Any:
        item = self._contents[key]
        return item.get() if isinstance(item, Content) else item

    def __setitem__(self, key: Any, value: Any) -> None:
        self.set_content(key, value)

    def __contains__(self, key: Any) -> bool:
        return key in self._contents

    def __str__(self) -> str:
        return f"Contents: {self.get_contents()}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.get_contents()})"
