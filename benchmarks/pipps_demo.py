"""The prototype's demo, pipps_demo, as it can be run beside our agent today.

It is written for Gym 0.19 and GPyTorch 1.3.1. Here its environment is made without Gym's wrappers,
and its parts for MuJoCo and films, which need more, are left out. With another GPyTorch, which has
other names for the noise, its initial hyperparameters are set by those.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import types
from typing import Any

import gymnasium
import torch

PEER = "pipps_demo"


def peer_settings(arguments: argparse.Namespace, horizon: int) -> argparse.Namespace:
    """Return the options of the demo's command: ours, and otherwise its defaults."""
    return argparse.Namespace(
        env="pipps-cartpole-swingup-v0",
        noise_k=1.0,
        batch_size=arguments.particles,
        rbf_centers=arguments.centres,
        lr=1e-2,
        dynamics_lr=0.1,
        render=False,
        gpu=False,
        num_random_trials=1,
        num_learned_trials=arguments.trials,
        num_evaluates=0,
        num_opt_steps=arguments.steps,
        num_dynamics_opt_steps=arguments.fit_steps,
        rollout_horizon=horizon,
        init_noise_std=0.02,
        jitter=1e-6,
        dynamics_model="gp",
        method="TP",
        activation="sins",
        loss="Regular",
        load_policy=None,
        load_dynamics=None,
        load_dynamics_data=None,
        resume=None,
        id="benchmark",
        record=False,
        save_git=False,
        plot_traj=False,
        num_threads=arguments.threads,
    )


def import_stand_ins() -> None:
    """Put what the demo needs of Gym into its place, and leave out MuJoCo and films."""

    def module(name: str, **contents: Any) -> types.ModuleType:
        made = types.ModuleType(name)
        vars(made).update(contents)
        sys.modules[name] = made
        return made

    entry_points: dict[str, tuple[str, dict[str, Any]]] = {}

    def register(id: str, entry_point: str, kwargs: dict[str, Any]) -> None:
        entry_points[id] = entry_point, kwargs

    def make(id: str, **options: Any) -> Any:
        entry_point, kwargs = entry_points[id]
        where, name = entry_point.split(":")
        return getattr(importlib.import_module(where), name)(**{**kwargs, **options})

    if "gym" in sys.modules:
        return
    from gymnasium.utils import seeding

    module("gym.envs")
    module("gym.envs.registration", register=register)
    utils = module("gym.utils", seeding=seeding)
    module("gym", Env=gymnasium.Env, spaces=gymnasium.spaces, utils=utils, make=make)
    module("cv2")
    module("pipps.envs.dm_control.base", DmControlWrapper=type("DmControlWrapper", (), {}))
    gaussian_processes = importlib.import_module("pipps.dynamics_models")
    likelihood = gaussian_processes.MultitaskGaussianLikelihood(num_tasks=2)
    if not hasattr(likelihood, "noise_covar"):
        gaussian_processes.GPDynamicsModel.smart_param_init = initialize
        gaussian_processes.GPDynamicsModel.print_properties = lambda model: None


def initialize(model: Any, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
    """Set the demo's initial hyperparameters by the names of GPyTorch from 1.4 on."""
    kernel, likelihood = model.model.covar_module, model.likelihood
    kernel.base_kernel.lengthscale = (inputs.std(0) / 10).expand(outputs.shape[1], 1, -1)
    likelihood.noise = outputs.var(0).mean().reshape(1) / 1000
    likelihood.task_noises = outputs.var(0)
