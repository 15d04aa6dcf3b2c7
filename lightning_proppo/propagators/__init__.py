"""Propagators: what may happen at a node, forward and backward."""

from lightning_proppo.propagators.backprop import BackPropagator
from lightning_proppo.propagators.base import ComboProp, Propagator, SequenceProp
from lightning_proppo.propagators.baseline import BaselineProp, mcgrad_temp
from lightning_proppo.propagators.biw import BIWBase, BIWProp
from lightning_proppo.propagators.chain import ChainProp
from lightning_proppo.propagators.loss import GSLossBase, LossBase, LossProp
from lightning_proppo.propagators.lr import LRBase, LRProp
from lightning_proppo.propagators.names import estimator_names, make_estimator
from lightning_proppo.propagators.plumbing import PauseBase, PauseProp, SkipProp, SumBase
from lightning_proppo.propagators.resample import GRProp, ResampleBase, ResampleProp
from lightning_proppo.propagators.rp import RPBase, RPProp
from lightning_proppo.propagators.shaping import GaussShapeBase, GSLoss, GSProp
from lightning_proppo.propagators.tp import TotalProp, TPBase, TPXProp

__all__ = [
    "BIWBase",
    "BIWProp",
    "BackPropagator",
    "BaselineProp",
    "ChainProp",
    "ComboProp",
    "GRProp",
    "GSLoss",
    "GSLossBase",
    "GSProp",
    "GaussShapeBase",
    "LRBase",
    "LRProp",
    "LossBase",
    "LossProp",
    "PauseBase",
    "PauseProp",
    "Propagator",
    "RPBase",
    "RPProp",
    "ResampleBase",
    "ResampleProp",
    "SequenceProp",
    "SkipProp",
    "SumBase",
    "TPBase",
    "TPXProp",
    "TotalProp",
    "estimator_names",
    "make_estimator",
    "mcgrad_temp",
]
