"""What TensorBoard shows beside the scalars: histograms, an image, a layout, hyperparameters."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lightning_proppo.callbacks.pictures import Column, draw_columns
from lightning_proppo.comparison import Findings

_CHARTS = {
    "log10 of variance": "log10_variance",
    "log10 of signal-to-noise ratio": "log10_snr",
    "log10 of particles needed": "log10_particles_needed",
    "log10 of gradient norm": "log10_gradient_norm",
    "log10 of bias": "log10_bias",
    "disagreement in standard errors": "disagreement",
}
# Of RP alone, where it is compared with LR.
_OF_DIFFERENCE = ("log10_bias", "disagreement")
# Training steps in the image; where there would be more, every other one is left out.
_COLUMNS = 256
# Of the time that passes, drawing during the training may take this share.
_SHARE = 0.01
_LOGARITHMIC = ("variance/", "snr/", "particles_needed/", "gradient_norm/", "bias/")
# Another name than the images have: TensorBoard shows one kind of thing under one name.
_HISTOGRAMS = "time_step_histograms"
# So many bars TensorBoard draws; it would share more out among these unevenly.
_BARS = 30


def tensorboard_writers(trainer: Any) -> list[Any]:
    """Return the writers of the Trainer's TensorBoard loggers, from either package of Lightning."""
    return [
        logger.experiment
        for logger in trainer.loggers
        if any(base.__name__ == "TensorBoardLogger" for base in type(logger).__mro__)
    ]


def lay_out(
    writer: Any, charts: dict[str, Any], hyperparameters: dict[str, Any], metrics: Sequence[str]
) -> None:
    """Arrange charts, and write the hyperparameters; TensorBoard reads one of each for a run.

    Args:
        writer: TensorBoard's.
        charts: by category, as :meth:`TensorBoardPages.charts` returns them.
        hyperparameters: those of the module, with the estimators' names.
        metrics: tags that are shown beside them.
    """
    from torch.utils.tensorboard.summary import hparams

    if charts:
        writer.add_custom_scalars(charts)
    plain = {
        name: value if isinstance(value, (bool, int, float, str)) else str(value)
        for name, value in hyperparameters.items()
    }
    # TensorBoard keeps the first that it reads, and Lightning writes the module's own next.
    for summary in hparams(plain, dict.fromkeys(metrics, math.nan)):
        writer._get_file_writer().add_summary(summary)


class TensorBoardPages:
    """Writes what is found to TensorBoard, and remembers it for the image.

    Args:
        name: what all tags begin with; "" for nothing.
    """

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.columns: list[Column] = []
        self._every = 1
        self._seen = 0
        self._drawn = 0
        self._drew = -math.inf
        self._took = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return what the image is made of, as tensors and plain values."""
        return {
            "columns": [dict(vars(column)) for column in self.columns],
            "every": self._every,
            "seen": self._seen,
            "drawn": self._drawn,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with that image."""
        self.columns = [Column(**column) for column in state["columns"]]
        self._every, self._seen, self._drawn = state["every"], state["seen"], state["drawn"]

    def tag(self, name: str) -> str:
        """Return what something is logged under."""
        return f"{self.name}/{name}" if self.name else name

    def charts(self, names: Sequence[str]) -> dict[str, Any]:
        """Return a category of charts, each of all estimators.

        Args:
            names: the estimators that are compared; no charts without any.
        """
        if not names:
            return {}
        category = f"Gradient estimators: {self.name}" if self.name else "Gradient estimators"
        charts = {}
        for title, tag in _CHARTS.items():
            shown = names
            if tag in _OF_DIFFERENCE:
                shown = ["RP"] if {"RP", "LR"} <= set(names) else []
            # Regular expressions. Which mark is which curve's, TensorBoard decides at every start;
            # its own legend says.
            tags = [f"{re.escape(self.tag(f'{tag}/{name}'))}$" for name in shown]
            if tags:
                charts[title] = ["Multiline", tags]
        return {category: charts}

    def show(
        self, writers: Sequence[Any], step: int, findings: Findings, metrics: dict[str, float]
    ) -> None:
        """Write what was found in a rollout, by time step, and keep it for the image.

        Args:
            writers: TensorBoard's.
            step: the training step.
            findings: what was found.
            metrics: what was logged.
        """
        column = Column(
            step,
            dict(findings.variances),
            findings.lr_weight,
            findings.rows,
            findings.disagreement,
        )
        if self._seen % self._every == 0:
            self.columns.append(column)
            if len(self.columns) > _COLUMNS:
                self.columns = self.columns[::2]
                self._every *= 2
        self._seen += 1
        for writer in writers:
            self._write(writer, step, findings, metrics)

    def draw(self, writers: Sequence[Any], step: int, spare: bool) -> None:
        """Draw the image.

        Args:
            writers: TensorBoard's.
            step: the training step.
            spare: leave it where drawing has taken too much of the time.
        """
        dear = time.monotonic() - self._drew < self._took / _SHARE
        if not writers or not self.columns or self._drawn == self._seen or (spare and dear):
            return
        start = time.monotonic()
        for name, figure in draw_columns(self.columns).items():
            for writer in writers:
                tag = self.tag(f"by_time_step/{name}")
                writer.add_figure(tag, figure, global_step=step, close=False)
        self._drawn = self._seen
        self._drew = time.monotonic()
        self._took = self._drew - start

    def _write(self, writer: Any, step: int, findings: Findings, metrics: dict[str, float]) -> None:
        for tag, value in metrics.items():
            # A linear axis shows nothing but RP once that has exploded.
            if tag.startswith(_LOGARITHMIC) and 0 < value < math.inf:
                writer.add_scalar(self.tag(f"log10_{tag}"), math.log10(value), step)
        for name, variances in findings.variances.items():
            shown = variances[(variances > 0) & variances.isfinite()].log10()
            if len(shown):
                tag = self.tag(f"{_HISTOGRAMS}/log10_variance_{name}")
                writer.add_histogram(tag, shown, step)
        if len(findings.lr_weight):
            tag = self.tag(f"{_HISTOGRAMS}/weight_on_LR")
            _add_profile(writer, tag, findings.lr_weight, step)


def _add_profile(writer: Any, tag: str, heights: torch.Tensor, step: int) -> None:
    """Write a histogram with a bar for each time step, as high as its value."""
    length = float(len(heights))
    heights = torch.nan_to_num(heights)
    if len(heights) > _BARS:
        heights = torch.nn.functional.adaptive_avg_pool1d(heights.unsqueeze(0), _BARS)[0]
    limits = torch.linspace(0, length, len(heights) + 1, dtype=torch.float64)
    middles = (limits[1:] + limits[:-1]) / 2
    writer.add_histogram_raw(
        tag,
        min=0.0,
        max=length,
        num=float(heights.sum()),
        sum=float((heights * middles).sum()),
        sum_squares=float((heights * middles.square()).sum()),
        bucket_limits=limits[1:].tolist(),
        bucket_counts=heights.tolist(),
        global_step=step,
    )
