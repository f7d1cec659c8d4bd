"""Evaluations of several methods in one file, what it refuses, and the table that is written from it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcdiff.data.suite import SKULLBREAK
from pcdiff.errors import InputError
from pcdiff.evaluation.comparison import compare
from pcdiff.evaluation.merging import merge, write_merged
from pcdiff.evaluation.methods_table import HEAD, methods_table
from pcdiff.evaluation.results import Results, conditions_of, write_results
from pcdiff.evaluation.rows import Row
from pcdiff.evaluation.training_notes import training_notes
from pcdiff.tensor_files import write_tensors

KINDS = ("own", *SKULLBREAK)


def rows(method: str, dsc: float, kinds: tuple[str, ...] = KINDS) -> list[Row]:
    """Three heads that differ by 0.01; each class is 0.1 below `own`."""
    return [
        Row(
            f"{kind}/{head:03d}",
            method,
            0,
            dsc + head / 100 - 0.1 * (kind != "own"),
            bdsc=0.5,
            hd95=2.0,
            seconds=10.0,
            peak_mb=500.0,
            ml_true=40.0 + head,
            truth=f"{kind}{head}",
        )
        for kind in kinds
        for head in range(3)
    ]


def write(folder: Path, of: list[Row], **notes: Any) -> Path:
    folder.mkdir()
    weights = {name: {f"{name}.safetensors": "0123456789abcdef"} for name in {row.method for row in of}}
    write_results(folder, Results(of, {"pcdiff": "1.2", "commit": "abc", "weights": weights, "workers": 1, **notes}))
    return folder / "results.json"


def cells(table: str, method: str) -> dict[str, str]:
    line = next(line for line in table.splitlines() if line.startswith(f"| {method} |"))
    return dict(zip(HEAD, (cell.strip() for cell in line.strip("|").split("|")), strict=True))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    trained = {"unet": {"windows": 12_000, "seconds": 5400.0, "device": "cpu"}}
    return [
        write(tmp_path / "a", rows("unet", 0.9), training=trained),
        write(tmp_path / "b", [*rows("prior", 0.8), Row("jaw/000", "prior", 0, refusal=True, reason="no head")]),
    ]


def test_a_merged_file_is_read_again_and_compared(tmp_path: Path, files: list[Path]) -> None:
    out = tmp_path / "methods.json"
    write_merged(out, merge(files))
    record = json.loads(out.read_text())
    assert list(record["methods"]) == ["unet", "prior"]
    assert record["methods"]["prior"]["runs"][0]["commit"] == "abc"
    assert len(record["rows"]) == 2 * 18  # a skull that must be refused has no scores
    assert compare([out]).methods == ["unet", "prior"]
    # A method is added, and one is measured again.
    again = write(tmp_path / "c", rows("prior", 0.85), commit="def")
    third = write(tmp_path / "d", rows("rbf", 0.7))
    write_merged(out, merge([out, again, third]))
    record = json.loads(out.read_text())
    assert [run["commit"] for run in record["methods"]["prior"]["runs"]] == ["def"]
    assert record["methods"]["unet"]["training"]["windows"] == 12_000
    assert compare([out]).estimates("dsc", "own")["prior"].mean == pytest.approx(0.86)


def test_a_method_may_be_evaluated_in_parts(tmp_path: Path) -> None:
    own = write(tmp_path / "own", rows("unet", 0.9, ("own",)), commit="abc")
    others = write(tmp_path / "suite", rows("unet", 0.9, SKULLBREAK), commit="def")
    found = merge([own, others])
    assert len(found["rows"]) == 18
    assert [run["commit"] for run in found["methods"]["unet"]["runs"]] == ["abc", "def"]


def test_parts_of_a_method_have_the_same_weights(tmp_path: Path) -> None:
    first = write(tmp_path / "a", rows("unet", 0.8, ("own",)))
    second = write(tmp_path / "b", rows("unet", 0.9, SKULLBREAK), weights={"unet": {"unet.safetensors": "other"}})
    with pytest.raises(InputError, match=r"expected the weights that unet had on other cases, got others"):
        merge([first, second])


def test_what_weights_say_is_kept_where_a_file_of_the_same_weights_says_nothing(tmp_path: Path) -> None:
    told = write(tmp_path / "told", rows("unet", 0.9), training={"unet": {"samples": 500}})
    silent = write(tmp_path / "silent", rows("unet", 0.8))
    assert merge([told, silent])["methods"]["unet"]["training"] == {"samples": 500}
    record = json.loads(silent.read_text())
    record["weights"]["unet"] = {"unet.safetensors": "others"}
    silent.write_text(json.dumps(record))
    assert not merge([told, silent])["methods"]["unet"]["training"]


def test_other_cases_other_truths_and_other_definitions_are_refused(tmp_path: Path, files: list[Path]) -> None:
    fewer = write(tmp_path / "fewer", rows("rbf", 0.7)[1:])
    with pytest.raises(InputError, match=r"rbf without own/000 \(1 of 18 are missing\)"):
        merge([*files, fewer])
    assert len(merge([*files, fewer], common=True)["rows"]) == 3 * 17
    digest = [replace(row, truth="other") if row.case == "own/001" else row for row in rows("rbf", 0.7)]
    with pytest.raises(InputError, match="case own/001: expected one skull and one true implant, got others for unet"):
        merge([*files, write(tmp_path / "digest", digest)])
    # Rows of an earlier version have no digest; the volume of the true implant tells them apart all the same.
    volume = [replace(row, truth="", ml_true=row.ml_true + 0.001) for row in rows("rbf", 0.7)]
    with pytest.raises(InputError, match="case own/000: expected one skull"):
        merge([*files, write(tmp_path / "volume", volume)])
    without = [replace(row, truth="") for row in rows("mean", 0.7)]
    assert len(merge([write(tmp_path / "without", without), *files])["rows"]) == 3 * 18
    with pytest.raises(InputError, match="expected scores by the definitions 1, got 2"):
        merge([*files, write(tmp_path / "metrics", rows("rbf", 0.7), metrics=2)])


def test_the_table(tmp_path: Path, files: list[Path]) -> None:
    failing = [
        Row(row.case, "mirror", 0, error="midline", ml_true=row.ml_true) if row.kind == "own" else row
        for row in rows("mirror", 0.7)
    ]
    out = tmp_path / "methods.json"
    write_merged(out, merge([*files, write(tmp_path / "mirror", failing, workers=2)]))
    table = methods_table(json.loads(out.read_text()))
    unet = cells(table, "unet")
    # Heads 0.90, 0.91, 0.92: standard deviation 0.01, of the mean 0.01 / sqrt(3).
    assert unet["own: DSC"] == "0.910 ± 0.006"
    assert unet["five classes: DSC"] == "0.810 ± 0.006"
    assert (unet["samples seen"], unet["training"], unet["commit"]) == ("12,000", "1.5 CPU h", "abc")
    assert unet["seconds"] == "10.0"
    prior = cells(table, "prior")
    assert (prior["samples seen"], prior["training"], prior["source"]) == ("", "", "ours")
    mirror = cells(table, "mirror")
    assert (mirror["own: DSC"], mirror["own: HD95 mm"], mirror["failed"]) == ("0.000 ± 0.000", "inf", "3 of 18")
    assert "- mirror, on the 15 of 18 cases in which it gives an implant (3 heads): DSC 0.610 ± 0.006" in table
    assert table.index("| unet |") < table.index("| prior |") < table.index("| mirror |")
    assert "| unet | 0.910 ± 0.006 | 0.810 ± 0.006 |" in table  # by class
    assert "`unet.safetensors` 0123456789ab" in table
    assert "| prior minus unet | -0.1000 ± 0.0000 (0 of 3 better) | -0.1000 ± 0.0000 (0 of 3 better) |" in table


def test_a_class_that_was_not_measured_leaves_its_cells_empty(tmp_path: Path) -> None:
    found = merge(
        [write(tmp_path / name, rows(name, dsc, ("own", "bilateral"))) for name, dsc in (("prior", 0.8), ("unet", 0.9))]
    )
    table = methods_table({**found, "rows": [row.to_json() for row in found["rows"]]})
    assert cells(table, "unet")["five classes: DSC"] == ""
    assert "| prior minus unet | -0.1000 ± 0.0000 (0 of 3 better) |  |" in table


def test_what_weights_say_of_their_training(tmp_path: Path) -> None:
    def notes(**metadata: str) -> dict[str, Any]:
        path = tmp_path / "weights.safetensors"
        write_tensors(path, {"values": np.zeros(1)}, metadata)
        return training_notes(path)

    assert notes(windows="100", seconds="7.5", device="cuda") == {"windows": 100, "seconds": 7.5, "device": "cuda"}
    assert notes(step="20", recipe='{"optimiser": {"batch": 16}}') == {"windows": 320}
    assert notes(samples="5", step="20") == {"windows": 5}
    assert notes(step="20", recipe="no json") == notes(heads="58") == training_notes(None) == {}


def test_an_evaluation_names_its_commit_and_definitions() -> None:
    found = conditions_of(["pcdiff"])
    assert found["metrics"] == 1
    assert "commit" in found


def test_infinite_distances_survive(tmp_path: Path) -> None:
    out = tmp_path / "methods.json"
    write_merged(out, merge([write(tmp_path / "a", [Row("own/000", "a", 0, error="why"), *rows("a", 0.5)[1:]])]))
    (failed,) = [row for row in compare([out]).rows["a"] if row.error]
    assert (failed.hd95, failed.hd) == (math.inf, math.inf)
    assert math.isnan(next(row for row in compare([out]).rows["a"] if not row.error).error_20mm)
