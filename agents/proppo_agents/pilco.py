"""PILCO-style policy search: a learned probabilistic model, and gradients through its rollouts."""

from __future__ import annotations

import inspect
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_proppo import PropagationError, PropagationManager
from lightning_proppo.callbacks.noise import NoiseStream
from lightning_proppo.generators import isolated
from lightning_proppo.installed_lightning import pl
from proppo_agents.arguments import check_count, check_rate
from proppo_agents.callbacks.base import tell_callbacks
from proppo_agents.costs import Cost, EnvironmentCost, LearnedReward
from proppo_agents.dynamics import DynamicsModel, GPDynamics
from proppo_agents.experience.best import best_checkpoint, keep_if_best, save_best
from proppo_agents.experience.episodes import Episode, PolicyFunction, collect_episode
from proppo_agents.experience.files import EpisodeFolder
from proppo_agents.experience.keeping import (
    collect_and_keep,
    earlier_episodes,
    keep_all,
    new_seed,
    run_folder,
    seeds_of,
)
from proppo_agents.experience.resuming import (
    LeftOver,
    Progress,
    digest_of_policy,
    generators_of,
    same_folder,
    set_generators,
    stacked,
)
from proppo_agents.experience.trials import Trial, best_so_far, trials_without_progress
from proppo_agents.export import export_policy
from proppo_agents.initial_state import InitialState
from proppo_agents.parts import make_part, plain_values
from proppo_agents.policies import Policy, RBFPolicy
from proppo_agents.ranks import empty_batches, made_by_first, mean_over_ranks, own_noise, share_of
from proppo_agents.rollouts import roll_out
from proppo_agents.watching.learning_curve import plot_trials
from proppo_agents.watching.reports import report
from proppo_agents.worlds import make_world

_LAST = 10  # steps whose mean predicted cost is that of a trial


class PILCO(pl.LightningModule):
    """Learns to act from few episodes, as PILCO does, with Monte Carlo gradients.

    An epoch is one trial: an episode of the real environment with the current policy (the first
    with random actions), a model fitted to all episodes, and ``steps`` gradient steps on the
    predicted cost of ``particles`` rollouts through the model, whose gradients are the manager's
    (PILCO: Deisenroth and Rasmussen 2011; with particles and total propagation: PIPPS, Parmas et
    al. 2018). After the last epoch the final policy has its episode too.

    Then the best policy is put back: the one with the highest real return, and of several the one
    with the lowest predicted cost. Where the environment rewards nothing, it is the one with the
    lowest real cost. Whenever a policy is the best so far, ``best.ckpt`` is saved in the run's
    folder, if the Trainer saves checkpoints.

    The manager comes from :class:`lightning_proppo.PropagationCallback`. The other parts can be
    exchanged: the model, the policy, the cost, and the distribution of an episode's start. Each may
    also be given as a dict with ``class_path`` and ``init_args``.

    Rollouts know no early end. Where an environment ends an episode before its time, the model
    learns of what came before, and the cost must say that the end is a bad one.

    On several ranks the particles are shared out evenly. The first rank alone acts in the real
    environment, fits the model and draws new policies, and sends the others what came of it, so
    that episodes, model and policy are the same on all of them.

    A run that was killed goes on from its last checkpoint as if nothing had happened, if it is in
    the same folder: trials draw from a stream of random numbers of their own, which checkpoints
    hold, and an episode that was acted after the checkpoint is taken from the folder in its turn.

    Logged: at each step ``predicted/cost`` (of an episode by the model, with the policy that the
    step starts from); at each episode, with the number of steps the policy has had, ``real/cost``,
    ``real/return`` and, where the environment tells it, ``real/success`` (1 or 0); at each fit
    ``dynamics/noise_std`` (mean over coordinates), and from the second on ``dynamics/r_squared``,
    how well the model before the fit predicted the new episode (mean over coordinates; 1 is
    perfect). A return is the sum of the environment's rewards in an episode, a cost the sum of
    ``cost``. An episode that ends early has a lower cost for that alone.

    Args:
        environment: what ``gymnasium.make`` makes: any environment whose actions are a bounded Box
            of [A] numbers, and whose observations are a Box. Other bounds than -1 and 1 are
            rescaled.
        environment_options: keyword arguments for ``gymnasium.make``.
        dynamics: the model; None: :class:`GPDynamics`.
        policy: what is learned; None: :class:`RBFPolicy`.
        cost: None: the environment's own, where ``proppo_envs.find_task`` or a method ``cost`` of
            the environment tells it (:class:`EnvironmentCost`); else its reward is learned, by the
            same kind of regression as the dynamics (:class:`LearnedReward`).
        initial: where episodes start; None: :class:`InitialState`, fitted to the episodes' first
            observations.
        angles: the coordinates of the observation that are angles (rad), which model and policy see
            by sine and cosine; None: those known of the environment.
        spread: [D], a typical deviation from 0 of each coordinate, which new policies are made for;
            None: the root mean square deviation of all observations so far from where episodes
            start. One episode of random actions tells little of it: say it where it is known.
        particles: rollouts for each gradient, of all ranks together; P, a rank's share of them, in
            the shapes below.
        horizon: H, steps of a predicted rollout; None: as many as an episode has. With more, a
            policy cannot let go in an episode's last steps, where a fall has no time to cost much.
        episode_steps: after how many steps a real episode ends; None: when the environment ends it,
            or, where that does not say, after ``horizon``.
        steps: gradient steps in an epoch.
        learning_rate: Adam's at the start of an epoch.
        final_learning_rate: at the end of an epoch, as a fraction of ``learning_rate``.
        candidates: how many random policies a search starts from: the model's favourite of them.
        patience: after how many epochs without a real return above all before the policy is given
            up, which is logged, and the next epoch starts from a random one again. What was learned
            with the first, poor models is often a dead end that gradients do not lead out of. One
            that has had a success is none, and is not given up. None: never.
        random_episodes: how many episodes there are before the first fit: those of ``data``, and
            then some with random actions.
        data: a folder of episodes to start from, as trainings and ``lightning-proppo collect``
            leave them (or one of their files). What a checkpoint holds too is not taken twice.

    Raises:
        TypeError, ValueError: if an argument is not as said here; at the start of training, if
            ``particles`` is not a multiple of the number of ranks.
        PropagationError: at the start of training, without a manager.
    """

    manager: PropagationManager
    best_checkpoint: Path | None = None  # of the best policy so far, where checkpoints are saved

    def __init__(
        self,
        environment: str = "proppo_envs:CartPoleSwingUp-v0",
        environment_options: dict[str, Any] | None = None,
        dynamics: DynamicsModel | None = None,
        policy: Policy | None = None,
        cost: Cost | None = None,
        initial: InitialState | None = None,
        angles: Sequence[int] | None = None,
        spread: Sequence[float] | None = None,
        particles: int = 200,
        horizon: int | None = None,
        episode_steps: int | None = None,
        steps: int = 120,
        learning_rate: float = 0.03,
        final_learning_rate: float = 0.3,
        candidates: int = 50,
        patience: int | None = 1,
        random_episodes: int = 1,
        data: str | None = None,
    ) -> None:
        super().__init__()
        given = dict(locals())
        check_count("particles", particles, 2)
        check_count("steps", steps)
        check_count("random_episodes", random_episodes)
        check_count("candidates", candidates)
        if patience is not None:
            check_count("patience", patience)
        if horizon is not None:
            check_count("horizon", horizon)
        check_rate("learning_rate", learning_rate)
        check_rate("final_learning_rate", final_learning_rate)
        world = self.world = make_world(
            environment, environment_options, episode_steps, angles, horizon
        )
        self.env, self.episode_steps = world.env, world.episode_steps
        self.horizon = self.episode_steps if horizon is None else horizon
        if self.horizon < self.episode_steps:
            raise ValueError(
                f"horizon must be at least an episode's {self.episode_steps} steps; got {horizon}. "
                "Shorter episodes: episode_steps."
            )
        size = world.spaces.observation_size
        if spread is not None and (len(spread) != size or not all(s > 0 for s in spread)):
            raise ValueError(
                f"spread must be {size} positive numbers, one for each coordinate of the "
                f"observation; got {list(spread)}."
            )
        self.dynamics = _part("dynamics", dynamics, DynamicsModel, GPDynamics).build(world.spaces)
        self.policy = _part("policy", policy, Policy, RBFPolicy).build(world.spaces)
        self.initial = _part("initial", initial, InitialState, InitialState).build(world.spaces)
        self.cost = _part("cost", cost, Cost, self._own_cost).build(world)
        parameters = list(inspect.signature(PILCO.__init__).parameters)[1:]
        # In plain values, which a checkpoint can hold and nothing has to be run for.
        self.save_hyperparameters({name: plain_values(given[name]) for name in parameters})
        self.spread = spread
        self.particles = particles
        self.steps = steps
        self.learning_rate = learning_rate
        self.final_learning_rate = final_learning_rate
        self.random_episodes = random_episodes
        self.data = data
        self.candidates = candidates
        self.patience = patience
        self.episodes: list[Episode] = []
        self.trials: list[Trial] = []
        self.kept: EpisodeFolder | None = None
        self._data_seeds: set[int] = set()
        self._stream = NoiseStream()
        self._left = LeftOver(None, [])
        self._progress = Progress()
        self._before: dict[str, Any] | None = None  # what a checkpoint holds amid a trial
        self._resumed = False
        self.reset_policy()

    def act(self, observation: Tensor) -> Tensor:
        """Return the policy's actions [P, A], from -1 to 1, at observations [P, D]."""
        action: Tensor = self.policy(observation.to(self.initial.mean_value))
        return action

    def export(self, path: str | Path) -> Path:
        """Write the policy to a file that PyTorch alone can run; see ``export_policy``."""
        return export_policy(self.policy, self.world, path)

    def predict(self) -> tuple[Tensor, Tensor]:
        """Roll the particles out through the model, recorded by the manager.

        Returns:
            The manager's loss [], the mean cost over the horizon; and the mean cost [] of an
            episode, without a gradient. On several ranks: of this rank's particles.
        """
        if not self.dynamics.fitted:
            raise RuntimeError("predict: there is no model yet; call refit() first.")
        start = self.initial.sample(share_of(self._trainer, self.particles, "particles"))
        costs = roll_out(
            self.manager,
            start,
            self.horizon,
            self.policy,
            self.dynamics,
            self.cost,
            self.world.spaces,
        )
        return self.manager.loss(), torch.stack(costs[: self.episode_steps]).sum()

    def evaluate_policy(
        self, episodes: int, seed: int, progress: Callable[[int], Any] | None = None
    ) -> dict[str, list[Any]]:
        """Act in the real environment, with nothing learned from it.

        Args:
            episodes: how many.
            seed: of the first; the next ones count on.
            progress: called with 1 after each.

        Returns:
            ``returns``, ``costs``, ``success`` (None: not reported) and ``early_ends`` (None: there
            was none), each a list with one entry for each episode.
        """
        done = []
        for index in range(episodes):
            done.append(collect_episode(self.env, self.act, seed + index))
            if progress is not None:
                progress(1)
        return {
            "returns": [e.total for e in done],
            "costs": [self.cost.cost_of(e, self.initial.mean_value) for e in done],
            "success": [e.success for e in done],
            "early_ends": [e.early_end(self.episode_steps) for e in done],
        }

    # -- a trial ------------------------------------------------------------------------------

    def on_train_epoch_start(self) -> None:
        """Collect an episode with the current policy and refit the model."""
        if self._progress.begun == self.current_epoch:
            return
        with self._trial():
            while len(self.episodes) < self.random_episodes:
                self.collect(policy=None)
            if self.current_epoch > 0:
                self.collect(policy=self.act)
            self.refit()
            given_up = self.current_epoch > 0 and self._out_of_patience()
            if given_up:
                report(
                    f"Policy given up (patience {self.patience}): {best_so_far(self.trials)}. "
                    "A new one is drawn."
                )
            if self.current_epoch == 0 or given_up:
                self.start_search()
            self._progress.begun = self.current_epoch

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the predicted cost, a scalar, whose gradient is the manager's."""
        del batch, batch_idx
        loss, predicted_cost = self.predict()
        self._progress.predicted.append(predicted_cost)
        self.log("predicted/cost", predicted_cost, prog_bar=True, sync_dist=True)
        return loss

    def on_train_end(self) -> None:
        """Give the final policy its episode, put the best one back, and draw the learning curve."""
        self._conclude()

    def collect(self, policy: PolicyFunction | None) -> Episode:
        """Act for one episode, keep it as data, and log what came of it."""
        predicted = self._predicted_cost()
        # Drawn by all ranks, so that their generators stay in step.
        seed = new_seed(self._data_seeds)
        about = {
            "environment": self.hparams["environment"],
            "environment_options": self.hparams["environment_options"] or {},
            "steps": self.global_step if self._trainer else 0,
            "predicted_cost": predicted,
            "seed": seed,
            "actions": "random" if policy is None else "policy",
            "policy": None if policy is None else digest_of_policy(self.policy),
        }

        def act() -> Episode:
            episode = self._left.take(about, self.env)
            if episode is not None:
                return episode
            # What an environment draws of the global generators is of this episode alone.
            with isolated(seed, self.initial.mean_value.device):
                return collect_and_keep(self.env, policy, seed, self.kept, about)

        episode = made_by_first(self._trainer, act)
        trial = self._trial_of(episode, about)
        metrics = {"real/cost": trial.real_cost, "real/return": trial.real_return}
        if trial.success is not None:
            metrics["real/success"] = float(trial.success)
        if self.dynamics.fitted:
            # A coordinate that stood still in this episode has none.
            metrics["dynamics/r_squared"] = float(self.dynamics.r_squared(episode).nanmean())
        tell_callbacks(self, episode, policy)
        self.episodes.append(episode)
        self.trials.append(trial)
        self._log_now(metrics)
        if self._trainer is not None:
            report(f"Trial {len(self.trials) - 1}: {trial}.")
        if policy is not None and keep_if_best(self._progress, self.trials, self.policy):
            save_best(self._trainer, self.best_checkpoint)
        return episode

    def refit(self) -> None:
        """Fit the model, and whatever else is learned of data, to all episodes."""
        learned: list[DynamicsModel | Cost] = [self.dynamics]
        if self.cost.learns:
            learned.append(self.cost)
        # Drawn by all ranks, so that their generators stay in step.
        seed = int(torch.randint(2**31 - 1, ()))

        def fit() -> list[dict[str, Any]]:
            with torch.random.fork_rng([]):
                torch.manual_seed(seed)
                for part in learned:
                    part.fit(self.episodes)
            return [part.state_dict() for part in learned]

        # Not by each rank for itself: where processors differ, so do an optimizer's results.
        states = made_by_first(self._trainer, fit)
        if self._trainer is not None and not self.trainer.is_global_zero:
            for part, state in zip(learned, states, strict=True):
                part.load_state_dict(state)
        self.initial.fit(self.episodes)
        self._log_now({"dynamics/noise_std": float(self.dynamics.noise_std.mean())})

    @torch.no_grad()
    def start_search(self) -> None:
        """Put the best of some random policies, by the model, in the policy's place."""
        candidates: list[dict[str, Tensor]] = []
        costs: list[Tensor] = []
        with own_noise(self._trainer, self.initial.mean_value.device):
            for _ in range(self.candidates):
                drawn = made_by_first(self._trainer, self._drawn_policy)
                self.policy.load_state_dict(drawn)
                candidates.append(drawn)
                costs.append(self.predict()[0])
        mean = mean_over_ranks(self._trainer, torch.stack(costs))
        best = int(mean.nan_to_num(nan=math.inf).argmin())
        self._put_in_place(candidates[best])
        self._progress.search_started = len(self.trials)

    def reset_policy(self) -> None:
        """Draw another policy at random, in place of the present one."""
        centre = torch.zeros(self.world.spaces.observation_size)
        if self.spread is not None:
            spread = torch.tensor(self.spread)
        elif self.episodes:
            centre = self.initial.mean_value.cpu().double()
            away = torch.cat([e.observations - centre for e in self.episodes])
            spread = away.square().mean(0).sqrt()
            # A coordinate that stays where it starts has nothing to be scaled by.
            spread = torch.where(spread > 1e-12, spread, torch.ones_like(spread))
        else:
            spread = torch.ones_like(centre)
        self.policy.reset(centre, spread)

    def _own_cost(self) -> Cost:
        if EnvironmentCost.is_known(self.world):
            return EnvironmentCost()
        return LearnedReward(self.dynamics.new_regressor())

    def _put_in_place(self, policy: dict[str, Tensor]) -> None:
        self.policy.load_state_dict(policy)
        if self._trainer is not None:
            for optimizer in self.trainer.optimizers:
                optimizer.state.clear()

    def _trial_of(self, episode: Episode, about: dict[str, Any]) -> Trial:
        predicted = about.get("predicted_cost")
        return Trial(
            steps=int(about.get("steps", 0)),
            predicted_cost=None if predicted is None else float(predicted),
            real_cost=self.cost.cost_of(episode, self.initial.mean_value),
            real_return=episode.total,
            success=episode.success,
            early_end=episode.early_end(self.episode_steps),
        )

    def _predicted_cost(self) -> float | None:
        """Return the mean over the last steps, and forget them; None if there were none."""
        # Those of a checkpoint are on the CPU.
        last = [value.to(self.device) for value in self._progress.predicted[-_LAST:]]
        self._progress.predicted = []
        if not last:
            return None
        return statistics.fmean(mean_over_ranks(self._trainer, torch.stack(last)).tolist())

    def _drawn_policy(self) -> dict[str, Tensor]:
        self.reset_policy()
        return {name: value.clone() for name, value in self.policy.state_dict().items()}

    def _out_of_patience(self) -> bool:
        if self.patience is None:
            return False
        return trials_without_progress(self.trials, self._progress.search_started) >= self.patience

    def _conclude(self) -> None:
        with self._trial():
            self.collect(policy=self.act)
            best = self._progress.best_trial
            if best is not None and best != len(self.trials) - 1:
                self._put_in_place(self._progress.best_policy)
                report(f"The policy of trial {best} is the best, and is put back.")
            self._progress.concluded = self.global_step
        save_best(self.trainer, self.best_checkpoint, again=False)
        folder = self.trainer.log_dir
        if self.trainer.is_global_zero and self.loggers and folder is not None:
            plot_trials(self.trials, Path(folder) / "learning_curve.png")

    def _log_now(self, metrics: dict[str, float]) -> None:
        # self.log would file an episode under the end of the epoch that it starts.
        if self._trainer is None or not self.trainer.is_global_zero:
            return
        for logger in self.loggers:
            logger.log_metrics(metrics, step=self.global_step)

    # -- Lightning ----------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Refuse particles that cannot be shared out, or no manager, before an episode is spent."""
        if stage != "fit":
            return
        share_of(self.trainer, self.particles, "particles")
        if not isinstance(getattr(self, "manager", None), PropagationManager):
            raise PropagationError(
                "PILCO has no manager; add lightning_proppo.PropagationCallback('TP') to the "
                "Trainer's callbacks, or set the attribute manager."
            )

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

    # -- what a run starts from, and goes on from ---------------------------------------------

    def on_fit_start(self) -> None:
        """Take the episodes of ``data``, and have all there are in the run's folder."""
        # A checkpoint may also have been loaded to start another training from.
        self._resumed = self._resumed and self.trainer.ckpt_path is not None
        if not self._resumed:
            self._progress.begun = None
        self._before = None
        self._stream.begin(self.device, rank=0, size=1)
        name = self.hparams["environment"]
        folder = run_folder(self.trainer, "episodes")
        self.best_checkpoint = best_checkpoint(self.trainer, self._resumed)
        # All of it that the checkpoint does not know is what came after it.
        data = None if self._resumed and same_folder(self.data, folder) else self.data
        found = made_by_first(
            self._trainer, lambda: earlier_episodes(data, self.episodes, self.env, name)
        )
        if folder is not None and self.trainer.is_global_zero:
            self.kept = EpisodeFolder(folder)
            self._left = LeftOver(folder, [*self.episodes, *(each.episode for each in found)])
            keep_all(self.kept, self.episodes, self.trials, found, name)
        self._data_seeds |= seeds_of(found)
        self.episodes += [each.episode for each in found]
        self.trials += [self._trial_of(each.episode, each.about) for each in found]

    def on_train_start(self) -> None:
        """Begin the trial that a run comes to that goes on from a checkpoint between two epochs.

        Lightning does not call the next hook there if the checkpoint was saved after the last step
        of an epoch, but before its end.
        """
        loop = self.trainer.fit_loop
        done = loop.epoch_loop.batch_progress.current.ready
        between = done in (0, self.trainer.num_training_batches)
        if self._resumed and between and not loop.done:
            self.on_train_epoch_start()
        self._resumed = False

    def on_fit_end(self) -> None:
        """Conclude a run that had been killed after its last step: Lightning trains it no more."""
        if self.global_step not in (0, self._progress.concluded):
            self._conclude()
        self._resumed = False

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the episodes, which the model is refitted to, and the class's name."""
        checkpoint["module_class"] = f"{type(self).__module__}.{type(self).__qualname__}"
        state = self._before or self._now()
        count = state["episodes"]
        checkpoint["episodes"] = [episode.state_dict() for episode in self.episodes[:count]]
        checkpoint["trials"] = [trial.state_dict() for trial in self.trials[:count]]
        rows = self._stream.state_of_ranks(entered=True)
        checkpoint["progress"] = {
            **state,
            "predicted": mean_over_ranks(self._trainer, state["predicted"].to(self.device)).cpu(),
            # All ranks have the same one.
            "stream": {name: states[:1] for name, states in rows.items()},
            "environment": generators_of(self.env),
            "data_seeds": sorted(self._data_seeds),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the episodes back, and go on from there."""
        self.episodes = [Episode(**state) for state in checkpoint["episodes"]]
        self.trials = [
            # Of an earlier version's the episode says the rest.
            Trial(**state) if "real_cost" in state else self._trial_of(episode, state)
            for episode, state in zip(self.episodes, checkpoint["trials"], strict=True)
        ]
        self._before = None
        progress = checkpoint.get("progress")
        if progress is None:  # of an earlier version
            return
        self._resumed = True
        self._progress = Progress(
            begun=progress["begun"],
            concluded=progress["concluded"],
            search_started=progress["search_started"],
            predicted=list(progress["predicted"]),
            best_trial=progress.get("best_trial"),
            best_policy=dict(progress.get("best_policy", {})),
        )
        self._data_seeds = set(progress["data_seeds"])
        self._stream.load(progress["stream"])
        set_generators(self.env, progress["environment"])

    @contextmanager
    def _trial(self) -> Iterator[None]:
        """Draw from the trials' stream; a checkpoint saved meanwhile is of before the block.

        So is one that is saved after an exception broke it off. The episode of the block is in the
        run's folder.
        """
        self._before = self._now()
        with self._stream.once():
            yield
        self._before = None

    def _now(self) -> dict[str, Any]:
        return {
            **vars(self._progress),
            "episodes": len(self.episodes),
            "predicted": stacked(self._progress.predicted[-_LAST:]),
        }


def _part(name: str, given: Any, kind: type[Any], default: Callable[[], Any]) -> Any:
    return default() if given is None else make_part(name, given, kind)
