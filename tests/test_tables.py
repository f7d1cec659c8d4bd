"""The tables of the documents hold the results, and the rest of the documents does not change."""

from __future__ import annotations

import json
import math
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pcdiff.evaluation.methods_table import methods_table
from pcdiff.evaluation.results import Results, write_results
from pcdiff.evaluation.rows import Row
from pcdiff.evaluation.speed import speed_table
from pcdiff.evaluation.tables import ablation_table, lattice_table, own_defects_table, variants_table

TOOL = Path(__file__).parents[1] / "tools" / "write_tables.py"
DOCUMENT = "before\n<!-- results -->\nold\n<!-- /results -->\nbetween\n<!-- variants -->\n<!-- /variants -->\nafter\n"
CLASSES = ("bilateral", "frontoorbital", "parietotemporal", "random_1", "random_2")


@pytest.fixture(scope="module")
def tool() -> dict[str, Callable]:
    return runpy.run_path(str(TOOL))


def results(folder: Path, rows: list[Row], ensemble: int = 1, workers: int = 1) -> dict:
    """The results.json that `pcdiff evaluate` writes."""
    weights = {row.method: {f"{row.method}.safetensors": "0123456789abcdef"} for row in rows}
    notes = {"pcdiff": "1.2", "ensemble": ensemble, "workers": workers, "weights": weights}
    write_results(folder, Results(rows, notes))
    return json.loads((folder / "results.json").read_text())


def row(case: str, dsc: float, method: str = "prior", spread: float = math.nan) -> Row:
    return Row(case, method, 0, dsc, dsc + 0.01, 1.5, spread_error=spread, seconds=7.25, peak_mb=500)


def lines(tool: dict[str, Callable], files: list[dict], folder: Path) -> list[str]:
    document = folder / "README.md"
    document.write_text(DOCUMENT)
    tables = {"results": own_defects_table(files), "variants": variants_table(files)}
    tool["write"](tables, [document])
    text = document.read_text()
    assert text.startswith("before\n<!-- results -->\n| method")
    assert text.endswith("<!-- /variants -->\nafter\n")
    tool["write"](tables, [document])
    assert document.read_text() == text
    assert "old" not in text
    return text.splitlines()


def test_the_table_of_the_data_set_s_own_defects(tool, tmp_path):
    one = results(tmp_path, [row("000", 0.9), row("001", 0.8), row("000", 0.95, "diffusion")])
    five = results(tmp_path, [row("000", 0.96, "diffusion", 0.3), row("000", 0.9)], ensemble=5, workers=2)
    written = lines(tool, [one, five], tmp_path)
    assert "| prior | 0.850 | 0.860 | 1.50 | 7.2 | 500 | 0.800 | 0 of 2 |" in written
    assert "| diffusion, 5 candidates | 0.960 | 0.970 | 1.50 |  | 500 | 0.960 | 0 of 1 |" in written  # no seconds
    assert sum(line.startswith("| prior") for line in written) == 1  # the candidates of the prior are all the same
    assert any("pcdiff 1.2" in line and "`diffusion.safetensors` 0123456789ab" in line for line in written)
    assert written[written.index("<!-- variants -->") + 1] == ""


def test_the_table_of_a_suite(tool, tmp_path):
    rows = [row(f"own/{n}", 0.94) for n in (0, 1)]
    rows += [row(f"{kind}/{n}", 0.8 + 0.01 * k) for k, kind in enumerate(CLASSES) for n in (0, 1)]
    rows += [row("irregular/0", 0.9), row("irregular/1", 0.9), row("two_defects/0", 0.8, spread=0.25)]
    rows.append(Row("two_defects/1", "prior", 0, error="why", seconds=1.0, peak_mb=1.0))
    nothing = dict.fromkeys(("dsc", "bdsc", "hd95"), math.nan)
    rows += [Row(f"jaw/{n}", "prior", 0, refusal=True, error=error, **nothing) for n, error in ((0, None), (1, "made"))]
    written = lines(tool, [results(tmp_path, rows)], tmp_path)
    assert "| prior | 0.940 | 0.950 | 1.50 | 7.2 | 500 | 0.940 | 0 of 2 |" in written
    table = [line for line in written if line.count("|") == 3 and "/" in line]
    assert [line.split(" | ")[0][2:] for line in table][1:9] == ["own", *CLASSES, "irregular", "two_defects"]
    assert "| bilateral | 0.800 / 0.810 / 1.50 / 0.800 |" in table
    assert "| two_defects | 0.400 / 0.405 / inf / 0.000 (1 failed) |" in table
    assert "| SkullBreak's five classes, mean of classes | 0.820 / 0.830 / 1.50 / 0.800 |" in table
    assert "| irregular and two_defects | 0.650 / 0.657 / inf / 0.000 (1 failed) |" in table
    assert not any(line.startswith("| jaw") for line in written)
    assert "Skulls without a defect, refused with a reason: prior: jaw 1 of 2." in written
    assert any("Spearman's rho" in line and line.endswith("prior: Spearman's rho 0.25.") for line in written)


def test_a_suite_of_other_defects_is_not_in_the_table_of_the_own_ones(tool, tmp_path):
    written = lines(tool, [results(tmp_path, [row("bilateral/0", 0.8)])], tmp_path)
    assert not any(line.startswith("| prior") for line in written)
    assert any("| bilateral" in line for line in written)


def test_a_whole_suite_hides_a_part_of_it_in_the_table_of_variants(tool, tmp_path):
    part = results(tmp_path, [row("own/0", 0.94)])
    suite = results(tmp_path, [row("own/0", 0.94), row("bilateral/0", 0.8)])
    assert any(line.startswith("| bilateral | 0.800") for line in lines(tool, [part, suite], tmp_path))


def test_a_group_that_was_not_measured_has_no_row(tool, tmp_path):
    written = lines(tool, [results(tmp_path, [row("own/0", 0.94), row("bilateral/0", 0.8)])], tmp_path)
    assert any(line.startswith("| bilateral") for line in written)
    assert not any("five classes" in line or line.startswith("Skulls without") for line in written)


def test_a_document_without_markers_is_an_error(tool, tmp_path):
    document = tmp_path / "README.md"
    document.write_text("nothing")
    with pytest.raises(SystemExit, match=r"README\.md: expected one pair of results markers, found 0"):
        tool["write"]({"results": ""}, [document])


def test_the_documents_have_their_markers(tool):
    for name, documents in (("results", tool["OWN"]), ("variants", tool["VARIANTS"])):
        for document in documents:
            text = document.read_text()
            assert text.count(f"<!-- {name} -->") == text.count(f"<!-- /{name} -->") == 1


def test_the_table_of_methods_is_that_of_its_file() -> None:
    docs = TOOL.parents[1] / "docs"
    table = methods_table(json.loads((docs / "results" / "methods.json").read_text()))
    assert f"<!-- methods -->\n{table}\n<!-- /methods -->" in (docs / "methods.md").read_text()


def test_an_ablation_has_one_row_per_variant() -> None:
    def scores(dsc: float, difference: dict | None) -> dict:
        means = {"dsc": dsc, "bdsc": 0.96, "hd95": None}
        return {"cases": 15, "mean": means, "worst": {"dsc": 0.9}, "dsc_difference": difference}

    difference = {"mean": -0.02, "standard_error": 0.0041, "better": 3, "skulls": 15}
    variants = {"all parts": scores(0.94, None), "without diffusion": scores(0.92, difference)}
    table = ablation_table({"variants": list(variants), "kinds": {"own": variants}})
    assert table.splitlines()[-2:] == [
        "| all parts | 0.940 / 0.960 / inf / 0.900 |  |",
        "| without diffusion | 0.920 / 0.960 / inf / 0.900 | -0.0200 ± 0.0041 (3 of 15 better) |",
    ]


def test_variants_on_the_lattice_have_the_mean_of_classes_and_the_difference() -> None:
    difference = {"mean": -0.02, "standard_error": 0.0041, "better": 3, "skulls": 15}
    gains = {
        "all": {"dsc": {"own": 0.9, "bilateral": 0.8}, "difference": {}},
        "none": {"dsc": {"own": 0.8, "bilateral": 0.6}, "difference": {"own": difference, "all": difference}},
    }
    assert lattice_table({"": gains}).splitlines() == [
        "| variant | DSC, mean of classes | minus that of all | own | bilateral |",
        "|---|---|---|---|---|",
        "| all | 0.850 |  | 0.900 | 0.800 |",
        "| none | 0.700 | -0.0200 ± 0.0041 (3 of 15 better) | 0.800 | 0.600 |",
    ]
    assert "| slices: all | 0.850 |" in lattice_table({"patches": gains, "slices": gains})


def test_the_table_of_speed_has_medians_ranges_and_the_difference() -> None:
    def measured(commit: str, seconds: list[float]) -> dict[str, Any]:
        whole = {"seconds": seconds, "cpu_seconds": [2 * each for each in seconds], "peak_mb": seconds}
        stages = {"start": [1.0, 3.0, 2.0], "fit": seconds, "total": seconds}
        return {"command": "design", "commit": commit, **whole, "stages": stages}

    rows = [measured("new", [4.0, 9.0, 5.0]), measured("old", [8.0, 7.0, 10.0])]
    where, _, *table = speed_table(
        {"machine": {"cores": 2}, "date": "2026-01-02T03:04:05", "load": [0.5, 3.0], "rows": rows}
    ).splitlines()
    assert where == "2026-01-02, cores 2. Medians of 3 runs. Load average of the machine: 0.5 to 3.0."
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert cells[0] == ["command", "commit", "seconds", "CPU-s", "peak MB", "start and report", "fit"]
    assert cells[2] == ["design", "new", "5.0 (4.0 to 9.0)", "10.0 (8.0 to 18.0)", "9", "2.00", "5.00"]
    assert cells[4] == ["design", "difference", "-3.0", "-6.0", "-1", "", ""]
