"""The environment and the policy that a subcommand acts with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import torch
import yaml
from jsonargparse import ArgumentParser

from lightning_proppo.cli import CommandError, load_module
from lightning_proppo.cli.hints import hint
from lightning_proppo.cli.program import first_line
from lightning_proppo.installed_lightning import pl
from proppo_agents.experience.episodes import PolicyFunction
from proppo_agents.worlds import make_world


@dataclass(frozen=True)
class Source:
    """What acts where.

    Attributes:
        env: the environment, as an agent takes it: actions from -1 to 1.
        policy: acts; None: random actions.
        environment: the id.
        options: keyword arguments that it was made with.
        steps: gradient steps that the policy has had.
    """

    env: gymnasium.Env[Any, Any]
    policy: PolicyFunction | None
    environment: str
    options: dict[str, Any]
    steps: int = 0


def of_checkpoint(path: Path) -> Source:
    """Return a checkpoint's policy and its environment.

    Raises:
        CommandError: if it cannot be rebuilt, or does not act in an environment.
    """
    module: Any = load_module(path)
    steps = int(torch.load(path, weights_only=True, map_location="cpu").get("global_step", 0))
    return _of_module(module, module.act if hasattr(module, "act") else None, steps)


def of_config(path: Path) -> Source:
    """Return the environment of the agent in a configuration of ``fit``; actions are random.

    Raises:
        CommandError: if the file cannot be read, or has no such agent.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        described = config["model"]
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise CommandError(
            f"{path} is not a configuration of fit: expected YAML with a key 'model'; "
            f"{first_line(error)}."
        ) from error
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(pl.LightningModule, "model", required=True)
    try:
        module = parser.instantiate(parser.parse_object({"model": described})).model
    except Exception as error:
        message = f"the model of {path} cannot be made: {error}"
        raise CommandError(message + hint(message)) from error
    return _of_module(module, None)


def of_environment(name: str, options: str) -> Source:
    """Return an environment by its id; actions are random.

    Args:
        name: what ``gymnasium.make`` takes.
        options: keyword arguments for it, as JSON.

    Raises:
        CommandError: if it cannot be made, or its actions are no bounded Box.
    """
    try:
        arguments = json.loads(options)
    except json.JSONDecodeError as error:
        raise CommandError(f"--options must be JSON; got {options!r}: {error}.") from error
    if not isinstance(arguments, dict):
        raise CommandError(f"--options must be a JSON object; got {options!r}.")
    try:
        env = make_world(name, arguments).env
    except (gymnasium.error.Error, ImportError, TypeError, ValueError) as error:
        raise CommandError(f"{name} cannot be made: {first_line(error)}") from error
    return Source(env, None, name, arguments)


def _of_module(module: Any, policy: PolicyFunction | None, steps: int = 0) -> Source:
    if not isinstance(getattr(module, "env", None), gymnasium.Env):
        raise CommandError(
            f"{type(module).__qualname__} does not act in an environment: it has no attribute env."
        )
    told = module.hparams
    name = told.get("environment") or module.env.spec.id
    return Source(module.env, policy, name, told.get("environment_options") or {}, steps)
