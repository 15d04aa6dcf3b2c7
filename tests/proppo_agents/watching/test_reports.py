"""What a training says can be read beside a progress bar."""

from __future__ import annotations

import logging

import pytest
from tqdm import tqdm

from proppo_agents.watching.reports import report


def test_a_report_stands_on_a_line_of_its_own(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with tqdm(total=2, file=None, ncols=40, desc="Epoch 0", mininterval=0) as bar:
        bar.update()
        capsys.readouterr()
        report("Trial 0: return 1.")
    assert caplog.messages == ["Trial 0: return 1."]
    shown = capsys.readouterr().err.replace("\r", "\n")
    assert shown.startswith("\n" + 40 * " " + "\n")
