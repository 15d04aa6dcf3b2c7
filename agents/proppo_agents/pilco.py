"""PILCO-style policy search: a learned probabilistic model, and gradients through its rollouts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_proppo import PropagationManager
from proppo_agents.dynamics import GPDynamics
from proppo_agents.encodings import check_angles
from proppo_agents.episodes import Episode, collect_episode
from proppo_agents.plots import plot_trials
from proppo_agents.policies import RBFPolicy
from proppo_agents.ranks import empty_batches, made_by_first, mean_over_ranks, own_noise, share_of
from proppo_agents.trials import Trial


class PILCO(pl.LightningModule):
    """Learns to act from few episodes, as PILCO does, with Monte Carlo gradients.

    An epoch is one trial: an episode of the real environment with the current policy (the first
    with random actions), a Gaussian process model fitted to all episodes, and ``steps`` gradient
    steps on the predicted cost of ``particles`` rollouts through the model, whose gradients are
    the manager's (PILCO: Deisenroth and Rasmussen 2011; with particles and total propagation:
    PIPPS, Parmas et al. 2018). After the last epoch the final policy has its episode too.

    The manager comes from :class:`lightning_proppo.PropagationCallback`.

    On several ranks the particles are shared out evenly. The first rank alone acts in the real
    environment, fits the model and draws new policies, and sends the others what came of it, so
    that episodes, model and policy are the same on all of them.

    Logged: at each step ``predicted/return`` (of the model's rollouts, of the policy that the step
    starts from); at each episode, with the number of steps the policy has had, ``real/return``
    and ``real/success`` (1 or 0); at each fit ``dynamics/noise_std`` (mean over coordinates), and
    from the second on ``dynamics/r_squared``, how well the model before the fit predicted the new
    episode (mean over coordinates; 1 is perfect). Returns are the sums of rewards, where a
    reward is 1 - cost.

    Args:
        environment: what ``gymnasium.make`` makes. Its actions must be a Box from -1 to 1, its
            episodes of a fixed length, and it must have a method ``cost(observation, action)``
            which takes tensors [P, D] of observations after a step, and [P, A], to costs [P].
        environment_options: keyword arguments for ``gymnasium.make``.
        angles: the coordinates of the observation that are angles (rad).
        initial_mean: [D], mean of the observation at an episode's start.
        initial_std: its standard deviation, one number or [D].
        spread: [D], a typical deviation from 0 of each coordinate; see :class:`RBFPolicy`.
        centres: basis functions of the policy.
        initial_weight_std: of the policy's weights.
        particles: rollouts for each gradient, of all ranks together; P, a rank's share of them, in
            the shapes below.
        horizon: H, steps of a predicted rollout; None: as many as an episode has. With more, a
            policy cannot let go in an episode's last steps, where a fall has no time to cost much.
        steps: gradient steps in an epoch.
        learning_rate: Adam's at the start of an epoch.
        final_learning_rate: at the end of an epoch, as a fraction of ``learning_rate``.
        candidates: how many random policies a search starts from: the model's favourite of them.
        patience: after how many epochs with neither a success nor a real return above all before
            the policy is given up, and the next epoch starts from a random one again. What was
            learned with the first, poor models is often a dead end that gradients do not lead out
            of. None: never.
        random_episodes: how many episodes with random actions there are before the first fit.
        fit_steps: Adam's steps in fitting the model.

    Raises:
        ValueError: if an argument is not as said here; at the start of training, if ``particles``
            is not a multiple of the number of ranks.
    """

    manager: PropagationManager
    initial_mean: Tensor
    initial_std: Tensor

    def __init__(
        self,
        environment: str = "proppo_envs:CartPoleSwingUp-v0",
        environment_options: dict[str, Any] | None = None,
        angles: Sequence[int] = (2,),
        initial_mean: Sequence[float] = (0.0, 0.0, 3.141592653589793, 0.0),
        initial_std: float | Sequence[float] = 0.1,
        spread: Sequence[float] = (1.0, 2.0, 3.0, 5.0),
        centres: int = 50,
        initial_weight_std: float = 0.5,
        particles: int = 200,
        horizon: int | None = None,
        steps: int = 120,
        learning_rate: float = 0.03,
        final_learning_rate: float = 0.3,
        candidates: int = 50,
        patience: int | None = 1,
        random_episodes: int = 1,
        fit_steps: int = 150,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("particles", particles, 2),
            ("steps", steps, 1),
            ("random_episodes", random_episodes, 1),
            ("fit_steps", fit_steps, 1),
            ("candidates", candidates, 1),
            ("patience", 1 if patience is None else patience, 1),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}; got {value!r}.")
        for name, rate in (
            ("learning_rate", learning_rate),
            ("final_learning_rate", final_learning_rate),
        ):
            if not rate > 0:
                raise ValueError(f"{name} must be positive; got {rate!r}.")
        self.env = gymnasium.make(environment, **(environment_options or {}))
        self._check_environment(environment)
        size = self.env.observation_space.shape[0]  # type: ignore[index]
        action_size = self.env.action_space.shape[0]  # type: ignore[index]
        if len(initial_mean) != size:
            raise ValueError(
                f"initial_mean must be {size} numbers, one for each coordinate of the observation; "
                f"got {list(initial_mean)}."
            )
        std = torch.as_tensor(initial_std, dtype=torch.get_default_dtype())
        if std.dim() > 1 or std.numel() not in (1, size) or bool((std < 0).any()):
            raise ValueError(
                f"initial_std must be a number or {size} numbers, 0 or more; got {initial_std!r}."
            )
        self.save_hyperparameters()
        self.angles = check_angles(angles, size)
        self._new_policy = partial(
            RBFPolicy, size, action_size, spread, self.angles, centres, initial_weight_std
        )
        self.policy = self._new_policy()
        self.register_buffer("initial_mean", torch.tensor([float(m) for m in initial_mean]))
        self.register_buffer("initial_std", std.expand(size).clone())
        self.episode_steps = int(self.env.spec.max_episode_steps)  # type: ignore[union-attr,arg-type]
        self.horizon = self.episode_steps if horizon is None else horizon
        if self.horizon < self.episode_steps:
            raise ValueError(
                f"horizon must be at least an episode's {self.episode_steps} steps; got {horizon}."
            )
        self.particles = particles
        self.steps = steps
        self.learning_rate = learning_rate
        self.final_learning_rate = final_learning_rate
        self.random_episodes = random_episodes
        self.fit_steps = fit_steps
        self.candidates = candidates
        self.patience = patience
        self.episodes: list[Episode] = []
        self.trials: list[Trial] = []
        self.dynamics: GPDynamics | None = None
        self._predicted: list[Tensor] = []
        self._search_started = 0

    def act(self, observation: Tensor) -> Tensor:
        """Return the policy's actions [P, A] at observations [P, D]."""
        return self.policy(observation.to(self.initial_mean))

    def predict(self) -> tuple[Tensor, Tensor]:
        """Roll the particles out through the model, recorded by the manager.

        Returns:
            The manager's loss [], the mean cost over the horizon; and the mean return [] of an
            episode, without a gradient. On several ranks: of this rank's particles.
        """
        if self.dynamics is None:
            raise RuntimeError("predict: there is no model yet; call refit() first.")
        cost = self.env.unwrapped.cost  # type: ignore[attr-defined]
        particles = share_of(self._trainer, self.particles, "particles")
        x = self.initial_mean + self.initial_std * torch.randn(
            (particles, len(self.initial_mean)),
            dtype=self.initial_mean.dtype,
            device=self.initial_mean.device,
        )
        costs = []
        for _ in range(self.horizon):
            u = self.policy(x)
            x = self.manager.sample(self.dynamics(x, u))
            costs.append(
                self.manager.append_loss({"observation": x, "action": u}, lossfunc=cost).mean()
            )
        return self.manager.loss(), (1 - torch.stack(costs[: self.episode_steps])).sum()

    # -- a trial -----------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Refuse particles that cannot be shared out, before an episode is spent."""
        if stage == "fit":
            share_of(self.trainer, self.particles, "particles")

    def on_train_epoch_start(self) -> None:
        """Collect an episode with the current policy and refit the model."""
        while len(self.episodes) < self.random_episodes:
            self.collect(policy=None)
        if self.current_epoch > 0:
            self.collect(policy=self.act)
        self.refit()
        if self.current_epoch == 0 or self._out_of_patience():
            self.start_search()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the predicted cost, a scalar, whose gradient is the manager's."""
        del batch, batch_idx
        loss, predicted_return = self.predict()
        self._predicted.append(predicted_return)
        self.log("predicted/return", predicted_return, prog_bar=True, sync_dist=True)
        self.log("real/return", self.trials[-1].real_return, prog_bar=True, logger=False)
        return loss

    def on_train_end(self) -> None:
        """Give the final policy its episode, and draw the learning curve."""
        self.collect(policy=self.act)
        folder = self.trainer.log_dir
        if self.trainer.is_global_zero and self.loggers and folder is not None:
            plot_trials(self.trials, Path(folder) / "learning_curve.png")

    def collect(self, policy: Callable[[Tensor], Tensor] | None) -> Episode:
        """Act for one episode, keep it as data, and log what came of it."""
        last = self._predicted[-10:]
        self._predicted = []
        predicted = mean_over_ranks(self._trainer, torch.stack(last)).tolist() if last else []

        # Drawn by all ranks, so that their generators stay in step.
        seed = int(torch.randint(2**31 - 1, ()))
        episode = made_by_first(self._trainer, lambda: collect_episode(self.env, policy, seed))
        trial = Trial(
            steps=self.global_step if self._trainer else 0,
            predicted_return=statistics.fmean(predicted) if predicted else None,
            real_return=episode.total,
            success=episode.success,
        )
        metrics = {"real/return": trial.real_return, "real/success": float(trial.success)}
        if self.dynamics is not None:
            model = self.dynamics.to(episode.observations)
            metrics["dynamics/r_squared"] = float(model.r_squared(episode).mean())
        self.episodes.append(episode)
        self.trials.append(trial)
        self._log_now(metrics)
        if self._trainer is not None:
            rank_zero_info(f"Trial {len(self.trials) - 1}: {trial}.")
        return episode

    def refit(self) -> None:
        """Fit the model to all episodes."""
        # Not by each rank for itself: where processors differ, so do an optimizer's results.
        dynamics = made_by_first(
            self._trainer, lambda: GPDynamics.fit(self.episodes, self.angles, self.fit_steps)
        )
        self.dynamics = dynamics.to(self.initial_mean)
        self._log_now({"dynamics/noise_std": float(dynamics.posterior.noise_std.mean())})

    @torch.no_grad()
    def start_search(self) -> None:
        """Put the best of some random policies, by the model, in the policy's place."""
        candidates: list[dict[str, Tensor]] = []
        costs: list[Tensor] = []
        with own_noise(self._trainer, self.initial_mean.device):
            for _ in range(self.candidates):
                drawn = made_by_first(self._trainer, lambda: self._new_policy().state_dict())
                self.policy.load_state_dict(drawn)
                candidates.append(drawn)
                costs.append(self.predict()[0])
        mean = mean_over_ranks(self._trainer, torch.stack(costs))
        best = int(mean.nan_to_num(nan=math.inf).argmin())
        self.policy.load_state_dict(candidates[best])
        self._search_started = len(self.trials)
        if self._trainer is not None:
            for optimizer in self.trainer.optimizers:
                optimizer.state.clear()

    # -- Lightning ---------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader[int]:
        """Return ``steps`` batches without content: the data are the model's own rollouts."""
        return empty_batches(self.steps)

    def configure_optimizers(self) -> Any:
        """Return Adam on the policy, its rate falling along a cosine in each trial."""
        optimizer = torch.optim.Adam(self.policy.parameters(), lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(
            optimizer, T_0=self.steps, eta_min=self.final_learning_rate * self.learning_rate
        )
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the episodes, which the model is refitted to, and the class's name."""
        checkpoint["module_class"] = f"{type(self).__module__}.{type(self).__qualname__}"
        checkpoint["episodes"] = [episode.state_dict() for episode in self.episodes]
        checkpoint["trials"] = [trial.state_dict() for trial in self.trials]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the episodes back."""
        self.episodes = [Episode(**state) for state in checkpoint["episodes"]]
        self.trials = [Trial(**state) for state in checkpoint["trials"]]

    def evaluate_policy(
        self, episodes: int, seed: int, progress: Callable[[int], Any] | None = None
    ) -> dict[str, list[Any]]:
        """Act in the real environment, with nothing learned from it.

        Args:
            episodes: how many.
            seed: of the first; the next ones count on.
            progress: called with 1 after each.

        Returns:
            ``{"returns": [...], "success": [...]}``, one entry for each episode.
        """
        done = []
        for index in range(episodes):
            done.append(collect_episode(self.env, self.act, seed + index))
            if progress is not None:
                progress(1)
        return {"returns": [e.total for e in done], "success": [e.success for e in done]}

    # -- inner -------------------------------------------------------------------------------

    def _out_of_patience(self) -> bool:
        if self.patience is None:
            return False
        best = -math.inf
        waited = 0
        for index, trial in enumerate(self.trials):
            better = trial.success or trial.real_return > best
            waited = 0 if better or index < self._search_started else waited + 1
            best = max(best, trial.real_return)
        return waited >= self.patience

    def _log_now(self, metrics: dict[str, float]) -> None:
        # self.log would file an episode under the end of the epoch that it starts.
        if self._trainer is None or not self.trainer.is_global_zero:
            return
        for logger in self.loggers:
            logger.log_metrics(metrics, step=self.global_step)

    def _check_environment(self, name: str) -> None:
        space = self.env.action_space
        if not (
            isinstance(space, gymnasium.spaces.Box)
            and len(space.shape) == 1
            and bool((space.low == -1).all() and (space.high == 1).all())
        ):
            raise ValueError(
                f"environment: the actions of {name} must be a Box of [A] numbers from -1 to 1; "
                f"got {space}. gymnasium.wrappers.RescaleAction makes them so."
            )
        if not callable(getattr(self.env.unwrapped, "cost", None)):
            raise ValueError(
                f"environment: {name} must have a method cost(observation, action), differentiable "
                "in torch; it has none."
            )
        if self.env.spec is None or self.env.spec.max_episode_steps is None:
            raise ValueError(
                f"environment: {name} must end its episodes after a fixed number of steps "
                "(max_episode_steps); it does not say."
            )
