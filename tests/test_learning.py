"""Learning curves: read from the logs of runs, and drawn beside the scores."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from pcdiff.errors import InputError
from pcdiff.evaluation.learning import read_curve, read_curves
from pcdiff.evaluation.results import Results, write_results
from pcdiff.evaluation.rows import Row
from pcdiff.tensor_files import write_tensors


def log(folder: Path, *rows: dict[str, float], batch: int | None = 16) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if batch is not None:
        (folder / "config.json").write_text(json.dumps({"method": "unet", "optimiser": {"batch": batch}}))
    return folder


def test_a_curve_has_samples_and_the_seconds_of_all_starts(tmp_path: Path) -> None:
    curve = read_curve(
        log(
            tmp_path / "unet",
            {"step": 50, "loss": 1, "seconds": 10},
            {"step": 50, "val_dsc": 0.5, "val_dsc_own": 0.6},
            {"step": 100, "loss": 1, "seconds": 20},
            {"step": 100, "val_dsc": 0.6, "val_dsc_own": 0.7},
            # The run was stopped, and goes on from a checkpoint of step 50.
            {"step": 100, "loss": 1, "seconds": 12},
            {"step": 100, "val_dsc": 0.7, "val_dsc_own": 0.8},
        )
    )
    assert curve.name == "unet"
    assert [(point.step, point.windows, point.seconds) for point in curve.points] == [(50, 800, 10), (100, 1600, 32)]
    assert [point.scores["dsc"] for point in curve.points] == [0.5, 0.7]
    assert curve.scores == ["dsc"]  # the classes are left out


def test_weights_beside_the_log_know_the_samples(tmp_path: Path) -> None:
    folder = log(tmp_path / "unet", {"step": 50, "val_dsc": 0.5}, batch=None)
    write_tensors(folder / "unet.safetensors", {"values": np.zeros(1)}, {"step": "50", "windows": "700"})
    assert read_curve(folder).points[0].windows == 700
    notes = {"step": "50", "windows": "1700", "earlier_windows": "1000"}  # the run began from other weights
    write_tensors(folder / "unet.safetensors", {"values": np.zeros(1)}, notes)
    assert read_curve(folder).points[0].windows == 1700
    log(folder, {"step": 100, "val_dsc": 0.5}, batch=None)
    assert read_curve(folder).points[0].windows == 2400


@pytest.mark.parametrize(
    ("rows", "batch", "message"),
    [
        ([{"step": 50, "loss": 1}], 16, "expected scores on held-out heads, got none"),
        ([{"loss": 1}], 16, r"expected log\.jsonl of `pcdiff train`"),
        ([{"step": 50, "val_dsc": 1}], None, r"config\.json of `pcdiff train`"),
    ],
)
def test_another_folder_is_refused(
    tmp_path: Path, rows: list[dict[str, float]], batch: int | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_curve(log(tmp_path / "run", *rows, batch=batch))
    with pytest.raises(InputError, match=r"expected log\.jsonl"):
        read_curve(tmp_path / "nothing")


def test_runs_have_names_of_their_own(tmp_path: Path) -> None:
    folders = [log(tmp_path / part / "unet", {"step": 50, "val_dsc": 0.5}) for part in ("a", "b")]
    with pytest.raises(InputError, match="--run: expected folders of different names, got unet twice"):
        read_curves(folders)


def test_the_page_draws_them(tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    write_results(tmp_path, Results([Row("own/000", "unet", 0, 0.9)], {"pcdiff": "1", "ensemble": 1, "weights": {}}))
    first = log(tmp_path / "first", {"step": 100, "seconds": 7200}, {"step": 100, "val_dsc": 0.5})
    second = log(tmp_path / "second", {"step": 100, "seconds": 3600}, {"step": 100, "val_loss": 2})
    code, _, error = run(
        "compare", tmp_path / "results.json", "--run", first, "--run", second, "-o", tmp_path / "out", "-q"
    )
    assert code == 0, error
    page = (tmp_path / "out" / "comparison.html").read_text()
    charts = re.findall(r'<svg class="drawing".*?</svg>', page, re.S)
    dsc, loss = (ElementTree.fromstring(chart) for chart in charts if "while training" in chart)
    tips = [[mark.findtext("title") for mark in chart.findall("circle")] for chart in (dsc, loss)]
    assert tips == [["first: 1,600, 0.5000", "first: 2, 0.5000"], ["second: 1,600, 2.0000", "second: 1, 2.0000"]]
    assert "samples seen" in charts[-1]
    assert "hours" in charts[-1]
