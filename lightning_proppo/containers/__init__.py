"""Smart contents and the containers that hold them (Appendix D, listing 2).

A :class:`Content` decides what happens when a second value arrives under a name that is taken:
plain values are replaced, :class:`Summed` adds, :class:`Listed` appends, :class:`Locked` refuses.
A :class:`Container` maps names to contents, a :class:`Node` is a container with a mailbox and a
propagator, and a :class:`Message` is a container for each target that it is addressed to.
"""

from lightning_proppo.containers.container import Container
from lightning_proppo.containers.contents import Content, Listed, Locked, Summed
from lightning_proppo.containers.message import Message, as_message
from lightning_proppo.containers.node import MARKS, NOTHING, Node

__all__ = [
    "MARKS",
    "NOTHING",
    "Container",
    "Content",
    "Listed",
    "Locked",
    "Message",
    "Node",
    "Summed",
    "as_message",
]
