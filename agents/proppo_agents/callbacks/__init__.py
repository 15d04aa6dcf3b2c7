"""Lightning callbacks that watch an agent."""

from proppo_agents.callbacks.episode_video import EpisodeVideo
from proppo_agents.callbacks.prediction_figure import PredictionFigure

__all__ = ["EpisodeVideo", "PredictionFigure"]
