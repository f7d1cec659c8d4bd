"""Comparison of methods: rows with known answers, files that belong together, and the page."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from scipy.stats import wilcoxon
from test_pdf import CHROMIUM

from pcdiff.errors import InputError
from pcdiff.evaluation.comparison import Comparison, compare
from pcdiff.evaluation.comparison_page import PAGE, write_comparison_page
from pcdiff.evaluation.comparison_tables import TABLES, Table, describe, place_tables, score_tables
from pcdiff.evaluation.inference import holm, interval, paired_p, ranks, resampled_means
from pcdiff.evaluation.places import bands, by_rim, by_size, estimates
from pcdiff.evaluation.results import Results, write_results
from pcdiff.evaluation.rows import Row
from pcdiff.geometry.metrics import Scores
from pcdiff.report.charts import box_chart, rank_chart, scatter_chart

HEADS = 12


def row(method: str, case: str, dsc: float, **more) -> Row:
    scores = Scores(dsc, dsc, 10 - 10 * dsc, 20 - 20 * dsc, 1 - dsc, dsc, dsc)
    return Row(case, method, 0, **vars(scores), seconds=10 * dsc, ml_true=40 + int(case[-3:]), ml_predicted=42, **more)


def rows_of(method: str, dsc: float, kinds: tuple[str, ...] = ("own", "bilateral")) -> list[Row]:
    """Heads 0 to 11 differ by 0.01 each, and the second class is 0.1 lower."""
    return [
        row(method, f"{kind}/{head:03d}", dsc + head / 100 - 0.1 * (kind == "bilateral"))
        for kind, head in product(kinds, range(HEADS))
    ]


def write(folder: Path, rows: list[Row], **notes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: {f"{name}.safetensors": "0123456789abcdef"} for name in {row.method for row in rows}}
    write_results(folder, Results(rows, {"pcdiff": "1.2", "ensemble": 1, "workers": 1, "weights": weights, **notes}))
    return folder / "results.json"


@pytest.fixture
def three(tmp_path: Path) -> Comparison:
    """`best` is 0.02 above `middle` on every head; `fails` is `middle`, but for one failed case of head 003."""
    failing = [
        Row(each.case, "fails", 0, error="why") if each.case == "own/003" else each for each in rows_of("fails", 0.7)
    ]
    files = [
        write(tmp_path / name, rows)
        for name, rows in (("x", rows_of("middle", 0.7)), ("y", failing), ("z", rows_of("best", 0.72)))
    ]
    return compare(files)


def test_resamples_are_of_heads_and_the_same_for_all_methods() -> None:
    values = np.array([[0.0, 1], [1, 2], [2, 3], [5, 6]])
    means = resampled_means(values)
    assert means.shape == (10_000, 2)
    assert np.allclose(means[:, 1] - means[:, 0], 1)
    assert means.mean(axis=0) == pytest.approx([2, 3], abs=0.05)
    # The standard error of a bootstrap is that of the mean with n instead of n - 1.
    assert means[:, 0].std() == pytest.approx(values[:, 0].std() / 2, rel=0.03)
    assert np.array_equal(means, resampled_means(values))


def test_the_interval_is_of_percentiles_and_may_be_infinite() -> None:
    low, high = interval(np.stack([np.arange(1, 10_001), np.full(10_000, 7)], axis=1).astype(float))
    assert low.tolist() == [250, 7]
    assert high.tolist() == [9750, 7]
    # One of twelve heads is infinite: 65 % of the resamples hold it.
    values = np.ones((12, 1))
    values[3] = math.inf
    low, high = interval(resampled_means(values))
    assert (low[0], high[0]) == (1, math.inf)


def test_wilcoxon_by_hand() -> None:
    # All of n differences have one sign: 2 of the 2**n signs are as extreme.
    assert paired_p(np.arange(1.0, 11)) == pytest.approx(2 / 2**10)
    assert paired_p(np.array([1.0, 2, 3, -4])) == pytest.approx(14 / 16)  # sums of ranks 6 and 4
    assert paired_p(np.array([0.0, 0, 1, 2, 3, 4, 5])) == pytest.approx(2 / 2**5)  # zeros are left out
    assert paired_p(np.array([1.0, 2, 3, -math.inf])) == pytest.approx(14 / 16)
    assert paired_p(np.zeros(9)) == 1


def test_wilcoxon_is_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    for heads, digits in ((7, 0), (7, 3), (40, 3)):  # with ties SciPy tries all signs, of a few heads only
        differences = np.round(rng.normal(0.5, 1, heads), digits)
        differences = differences[differences != 0]
        expected = wilcoxon(differences, method="auto" if digits == 0 else "exact").pvalue
        assert paired_p(differences) == pytest.approx(expected)


def test_holm_by_hand() -> None:
    assert holm(np.array([0.03, 0.01, 0.04])) == pytest.approx([0.06, 0.03, 0.06])
    assert holm(np.array([0.5, 0.9])) == pytest.approx([1, 1])


def test_equal_methods_share_a_rank() -> None:
    assert ranks(np.array([0.9, 0.8, 0.9, 0.7]), True).tolist() == [1, 3, 1, 4]
    assert ranks(np.array([[1.0, math.inf, 0.5]]), False).tolist() == [[2, 3, 1]]


def test_a_head_counts_once(tmp_path: Path) -> None:
    rows = [row("a", "own/000", 0.5), row("a", "own/001", 0.9), row("a", "bilateral/001", 0.7)]
    found = compare([write(tmp_path / "x", rows)])
    assert found.values("dsc").tolist() == [[0.5], [pytest.approx(0.8)]]
    assert found.estimates("dsc")["a"].mean == pytest.approx(0.65)
    assert found.estimates("dsc", "own")["a"].mean == pytest.approx(0.7)
    assert (found.cases, found.heads, found.kinds) == (3, ["000", "001"], ["own", "bilateral"])


def test_differences_tests_and_ranks(three: Comparison) -> None:
    assert three.methods == ["best", "middle", "fails"]
    assert three.estimates("dsc")["best"].mean == pytest.approx(0.725)
    pairs = {(test.first, test.second): test for test in three.tests("dsc")}
    clear = pairs["best", "middle"]
    assert (clear.difference.mean, clear.difference.low, clear.difference.high) == pytest.approx((0.02, 0.02, 0.02))
    assert clear.p == pytest.approx(2 / 2**HEADS, rel=0.5)  # all differences are equal, which SciPy approximates
    assert clear.p_holm == pytest.approx(3 * min(test.p for test in pairs.values()))
    one = pairs["middle", "fails"]  # 0.73 lost in one of two cases of one of twelve heads
    assert one.difference.mean == pytest.approx(0.73 / 2 / HEADS)
    assert one.p == 1
    found = three.ranks("dsc")
    assert [found[name].rank for name in three.methods] == [1, 2, 3]
    assert found["best"].shares == (1, 0, 0)
    assert (found["best"].low, found["best"].high) == (1, 1)
    # `fails` equals `middle` in the resamples without head 003, and shares its rank then.
    assert found["fails"].shares[1] == pytest.approx((11 / 12) ** HEADS, abs=0.02)


def test_a_failure_is_infinitely_far(three: Comparison) -> None:
    found = three.estimates("hd95")["fails"]
    assert (found.mean, found.high) == (math.inf, math.inf)
    assert found.low == pytest.approx(3.0, abs=0.3)
    assert three.failed("fails") == three.failed("fails", "own") == 1
    assert three.failed("fails", "bilateral") == 0
    tests = {(test.first, test.second): test for test in three.tests("hd95")}
    assert tests["middle", "fails"].difference.mean == -math.inf
    assert three.ranks("hd95")["fails"].rank == 3


def test_two_methods_that_fail_on_the_same_head_do_not_differ_there(tmp_path: Path) -> None:
    files = []
    for name in ("a", "b"):
        rows = [*rows_of(name, 0.6, ("own",))[1:], Row("own/000", name, 0, error="why")]
        files.append(write(tmp_path / name, rows))
    (test,) = compare(files).tests("hd95")
    assert (test.difference.mean, test.p) == (0, 1)


def test_groups_by_size_and_by_distance_from_the_bone(tmp_path: Path) -> None:
    rows = [
        replace(each, ml_true=10.0 * (k + 1), error_0_5mm=0.1 * k, error_20mm=math.nan if k < 4 else 2.0)
        for k, each in enumerate(rows_of("a", 0.7, ("own",))[:8])
    ]
    rows[0] = Row(rows[0].case, "a", 0, ml_true=10.0, error="why")
    found = compare([write(tmp_path / "x", rows)])
    sizes = by_size(found)
    assert list(sizes) == ["10 to 20 ml", "30 to 40 ml", "50 to 60 ml", "70 to 80 ml"]
    assert [[row.case for row in of["a"]] for of in sizes.values()][1] == ["own/002", "own/003"]
    scores = estimates(sizes, dict.fromkeys(sizes, "dsc"))
    assert scores["10 to 20 ml"]["a"].mean == pytest.approx(0.71 / 2)  # a failure counts
    rim = by_rim(found)
    assert list(rim) == ["0 to 5 mm", "over 20 mm"]
    errors = estimates(rim, bands())
    assert errors["0 to 5 mm"]["a"].mean == pytest.approx(0.4)  # of 0.1 to 0.7: the failure has no error
    assert errors["over 20 mm"]["a"].mean == pytest.approx(2)
    titles = {table.title: table for table in place_tables(found)}
    assert titles["Mean surface error in mm by distance from the bone"].rows == [
        ["a", "0.40 [0.26, 0.54]", "2.00 [2.00, 2.00]"]
    ]
    old = compare([write(tmp_path / "y", rows_of("b", 0.7, ("own",))[:3])])
    assert (by_size(old), by_rim(old), place_tables(old)) == ({}, {}, [])


def test_only_shared_cases_are_compared(tmp_path: Path) -> None:
    # A case without a class is one of the data set's own defects, which a suite calls `own`.
    plain = [row("a", f"{head:03d}", 0.8) for head in range(4)]
    refusal = Row("jaw/000", "b", 0, refusal=True, reason="no head")
    files = [write(tmp_path / "x", plain), write(tmp_path / "y", [*rows_of("b", 0.5), refusal])]
    found = compare(files)
    assert (found.cases, found.kinds, found.left_out) == (4, ["own"], {"a": 0, "b": 20})
    assert "20 cases of b are left out, because another method lacks them." in describe(found)
    assert "With 4 heads no p of these 2 methods can be below 0.12." in describe(found)
    with pytest.raises(InputError, match=r"a case in common, got none \(a: own/000 \.\.\., b: tilted/000 \.\.\.\)"):
        compare([files[0], write(tmp_path / "z", [row("b", "tilted/000", 1)])])


def test_cases_of_one_name_and_other_skulls_are_refused(tmp_path: Path) -> None:
    ours, theirs, earlier = (
        write(tmp_path / name, [replace(each, truth=truth) for each in rows_of(name, 0.7)])
        for name, truth in (("ours", "a"), ("theirs", "b"), ("earlier", ""))
    )
    with pytest.raises(InputError, match=r"case bilateral/000: .* got others for ours and for theirs"):
        compare([ours, theirs])
    assert compare([ours, earlier]).methods == ["ours", "earlier"]


def test_files_of_one_method_are_put_together_or_told_apart(tmp_path: Path) -> None:
    own, bilateral = (write(tmp_path / kind, rows_of("a", 0.7, (kind,))) for kind in ("own", "bilateral"))
    assert compare([own, bilateral]).cases == 2 * HEADS
    assert compare([own, own]).methods == ["a"]
    again = write(tmp_path / "again", rows_of("a", 0.6, ("own",))).rename(tmp_path / "later.json")
    assert compare([own, again]).methods == ["a (own)", "a (later)"]
    spread = [row("a", f"own/{head:03d}", 0.9, spread_error=0.5) for head in range(HEADS)]
    assert compare([own, write(tmp_path / "five", spread, ensemble=5)]).methods == ["a, 5 candidates", "a"]
    twice = write(tmp_path / "deep" / "own", rows_of("a", 0.7, ("own",)))
    with pytest.raises(InputError, match="got own twice for a; rename the file"):
        compare([own, twice])


def test_seeds_of_a_case_are_averaged(tmp_path: Path) -> None:
    rows = [Row("own/000", "a", seed, dsc) for seed, dsc in enumerate((0.5, 0.9))]
    rows.append(Row("bilateral/000", "a", 0, 0.3))
    assert compare([write(tmp_path / "x", rows)]).values("dsc").tolist() == [[pytest.approx(0.5)]]


def test_what_an_earlier_version_did_not_measure_is_left_out(tmp_path: Path) -> None:
    new, old = (write(tmp_path / name, rows_of(name, 0.7)) for name in ("new", "old"))
    record = json.loads(old.read_text())
    for each in record["rows"]:
        del each["nsd_1mm"]
    old.write_text(json.dumps(record))
    found = compare([new, old])
    assert math.isnan(found.estimates("nsd_1mm")["old"].mean)
    assert found.tests("nsd_1mm") == []
    assert list(found.ranks("nsd_1mm")) == ["new"]
    assert "NSD 1 mm" in score_tables(found)[0].head
    assert "NSD 1 mm" not in score_tables(compare([old]))[0].head


def one_row(**values: object) -> str:
    return json.dumps({"pcdiff": "1", "rows": [{"case": "000", "method": "a", "seed": 0, "dsc": 0.9, **values}]})


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("{}", "JSON of another kind; leave it out"),
        ('{"cases": "060-074", "rows": []}', "JSON of another kind; leave it out"),
        ("nothing", "Invalid JSON"),
        ('{"pcdiff": "1", "rows": [{"variant": "a"}]}', "expected a row, got {'variant': 'a'}; leave the file out"),
        ('{"pcdiff": "1", "rows": []}', "no row; leave the file out"),
        (one_row(dsc=2.0), "expected dsc from 0 to 1, got 2; leave"),
        (one_row(hd95=-3.0), "expected hd95 from 0 to inf, got -3; leave"),
        (one_row(method=""), "expected a row with a method and a DSC, got {'case': '000', 'method': ''"),
        (one_row(dsc=None), "expected a row with a method and a DSC, got {'case': '000', 'method': 'a'"),
    ],
)
def test_another_file_is_refused_in_one_line(tmp_path: Path, run, text: str, got: str) -> None:
    (tmp_path / "other.json").write_text(text)
    code, said, error = run("compare", tmp_path / "other.json", "-o", tmp_path / "out")
    assert (code, said, error.count("\n")) == (2, "", 1)
    assert "other.json: expected results.json of `pcdiff evaluate` or `pcdiff score`, or what tools" in error
    assert f" of several, got: {got}" in error
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path, run) -> None:
    results = write(tmp_path / "x", rows_of("a", 0.7))
    for out in (results, results / "deep"):
        code, said, error = run("compare", results, "-o", out)
        assert (code, said) == (2, "")
        assert error == f"pcdiff: {out}: expected a folder to write to, got a file in its path; choose another\n"


def test_latex_escapes_what_it_would_read() -> None:
    text = Table("50 % & more", ["a_b", "±"], [["x\\y", "< 1"]]).to_latex()
    assert r"\caption{50 \% \& more}" in text
    assert r"a\_b & $\pm$ \\" in text
    assert r"x\textbackslash{}y & \textless{} 1 \\" in text
    assert r"\begin{tabular}{lr}" in text


def test_no_name_breaks_a_row() -> None:
    table = Table("t", ["a|b", "c"], [["[ours]\n\n<b>x", ""]])
    assert table.to_markdown().splitlines()[2:] == [r"| a\|b | c |", "|---|---|", "| [ours] <b>x |  |"]
    assert r"a\textbar{}b & c \\" in table.to_latex()
    assert r"{}[ours]  \textless{}b\textgreater{}x &  \\" in table.to_latex()


def test_the_command_writes_tables_and_a_page(tmp_path: Path, run) -> None:
    first = [
        replace(each, failed_checks="complete" if each.kind == "bilateral" else "")
        for each in rows_of("first <b>", 0.72)
    ]
    files = [write(tmp_path / "x", first), write(tmp_path / "y", rows_of("second_2", 0.7))]
    out = tmp_path / "deep" / "comparison"
    code, said, _ = run("compare", *files, "-o", out)
    assert code == 0
    assert "24 cases of 12 heads, 2 classes." in said
    names = {"tables.md", "tables.tex", "scores.csv", "places.csv", "tests.csv", "ranks.csv", "comparison.html"}
    assert {path.name for path in out.iterdir()} == names == {PAGE, *TABLES}
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("older")
        code, said, error = run("compare", *files, "-o", tmp_path / name)
        assert (code, said) == (2, "")
        assert f"{name}: expected a new file, found one that may be of another comparison; choose" in error
        assert (tmp_path / name / name).read_text() == "older"
    assert run("compare", *files, "-o", tmp_path / PAGE, "--overwrite", "-q")[0] == 0
    assert (tmp_path / PAGE / PAGE).read_text() == (out / PAGE).read_text()
    lines = (out / "tables.md").read_text().splitlines()
    assert any(
        line.startswith("| first <b> | 0.725 [0.") and line.endswith("| 0.50 [0.50, 0.50] | 7.2 | 0 |")
        for line in lines
    )
    head = next(line for line in lines if line.startswith("| method | DSC "))
    assert head.endswith("| complete | no false positive area | fit | passes every check | seconds | failed |")
    assert any(line.startswith("Complete, no false positive area, fit (goes in, ") for line in lines), "says what it is"
    assert "| first <b> | 0.775 [0.756, 0.794] | 0.675 [0.656, 0.694] |" in lines
    assert "| first <b> | +0.0200 (< 0.001) |" in lines or "| first <b> | +0.0200 (0.001) |" in lines
    assert r"second\_2 & " in (out / "tables.tex").read_text()
    with (out / "scores.csv").open(newline="") as file:
        scores = [line for line in csv.DictReader(file) if line["metric"] == "dsc"]
    assert [(line["class"], line["method"]) for line in scores[:3]] == [
        ("all", "first <b>"),
        ("all", "second_2"),
        ("own", "first <b>"),
    ]
    assert float(scores[2]["mean"]) == pytest.approx(0.775)
    page = (out / "comparison.html").read_text()
    shown = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert "first &lt;b&gt;" in shown
    assert "first <b>" not in shown
    assert not re.findall(r'(?:src|href)="(?!data:)[^"]*"', shown)
    assert "0.725<br><small>[0." in shown
    assert not re.findall(r"<th[^>]*></th>", shown), "a head without a text is none"
    assert '<div class="scroll" tabindex="0"' in shown, "to be scrolled with the keyboard"
    charts = drawings(page)
    assert list(charts)[:5] == ["DSC against seconds", "DSC", "bDSC", "HD95\u00a0mm", "NSD 1\u00a0mm"]
    assert len(re.findall('<svg class="drawing"', page)) == 10
    assert len(re.findall('<svg class="drawing narrow"', page)) == 1, "DSC against seconds, for a phone"
    assert len(page.encode()) < 400_000, "no library is in the page"
    boxes = charts["DSC"]
    assert len(boxes.findall("rect")) == 4, "two methods in two classes"
    values = sorted(float(each.text.split(": ")[1]) for each in boxes.findall("circle/title"))
    assert len(values) == 4 * HEADS
    marks = charts["DSC against seconds"].findall("circle")
    assert [mark.findtext("title") for mark in marks] == [
        "first <b>: 7.2 seconds, DSC 0.725",
        "second_2: 7.0 seconds, DSC 0.705",
    ]
    assert float(marks[0].get("cy")) < float(marks[1].get("cy")), "the better one is higher"


def drawings(page: str) -> dict[str, ElementTree.Element]:
    """The first chart of each name in a page."""
    found = re.findall(r"<svg class=\"drawing\".*?</svg>", page, re.S)
    parsed = [ElementTree.fromstring(text) for text in found]
    charts: dict[str, ElementTree.Element] = {}
    for each in parsed:
        charts.setdefault(each.get("aria-label", ""), each)
    return charts


@pytest.fixture
def browser() -> Iterator[Any]:
    driver = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with driver.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def test_the_page_on_a_screen_and_on_a_phone(three: Comparison, browser: Any, tmp_path: Path) -> None:
    write_comparison_page(tmp_path, three)
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.goto((tmp_path / PAGE).as_uri())
    scores = page.locator("[aria-label=Scores]")
    hidden = "table => table.scrollWidth - table.clientWidth"
    assert scores.evaluate(hidden) == 0, "all columns are seen"
    page.set_viewport_size({"width": 390, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    chart = page.locator("[role=group][aria-label='DSC against seconds']")
    assert chart.evaluate(hidden) == 0
    shown = [mark.bounding_box() for mark in chart.locator("circle").all() if mark.is_visible()]
    assert len(shown) == 3
    assert all(0 < box["x"] < 390 for box in shown)

    def edges() -> tuple[float, float]:
        """The brightness of the left and the right edge of the scores, below their text."""
        grey = np.asarray(Image.open(BytesIO(scores.screenshot())).convert("L"), float)
        return grey[-3:, 6].mean(), grey[-3:, -2].mean()

    assert scores.evaluate(hidden) > 100
    assert edges()[1] < 230 < edges()[0], "a shadow says that there is more"
    first = page.locator("[aria-label=Scores] tbody td").first
    before = first.bounding_box()
    scores.evaluate("table => table.scrollTo(9999, 0)")
    assert edges()[1] > 250
    assert first.bounding_box() == before, "the methods stay"


def test_a_box_chart_is_to_scale() -> None:
    points = {"a": [(f"c{n}", value) for n, value in enumerate((0.1, 0.2, 0.3, 0.4, 0.9))], "b": [("c", math.inf)]}
    (chart,) = drawings(box_chart("DSC", {"own": points}, "")).values()
    at = {each.findtext("title"): float(each.get("cx", "nan")) for each in chart.findall("circle")}
    assert list(at) == ["c0: 0.100", "c1: 0.200", "c2: 0.300", "c3: 0.400", "c4: 0.900"], "and nothing infinite"
    per_unit = (at["c4: 0.900"] - at["c0: 0.100"]) / 0.8
    (box,) = chart.findall("rect")
    assert float(box.get("x", "nan")) == pytest.approx(at["c1: 0.200"], abs=0.2)
    assert float(box.get("width", "nan")) == pytest.approx(0.2 * per_unit, abs=0.2)
    numbers = {each.text: float(each.get("x", "nan")) for each in chart.findall("text")}
    assert numbers["0.6"] - numbers["0.4"] == pytest.approx(0.2 * per_unit, abs=0.2)
    (log,) = drawings(box_chart("mm", {"own": points}, "", log=True)).values()
    at = {each.findtext("title"): float(each.get("cx", "nan")) for each in log.findall("circle")}
    assert at["c1: 0.200"] - at["c0: 0.100"] == pytest.approx(at["c3: 0.400"] - at["c1: 0.200"], abs=0.2)


def test_a_rank_chart_names_each_share() -> None:
    (chart,) = drawings(rank_chart("Ranks", {"a": [0.75, 0.25], "<b>": [0.25, 0.75]}, "")).values()
    tips = [each.findtext("title") for each in chart.findall("rect")]
    assert tips == ["a, rank 1: 75.0%", "a, rank 2: 25.0%", "<b>, rank 1: 25.0%", "<b>, rank 2: 75.0%"]
    assert [each.get("fill-opacity") for each in chart.findall("rect")] == ["0.750", "0.250", "0.250", "0.750"]


def test_labels_of_neighbours_stand_on_different_sides() -> None:
    def sides(*points: tuple[str, float, float]) -> dict[str, float]:
        drawn = [{"label": n, "x": x, "y": y, "low": y, "high": y, "filled": True} for n, x, y in points]
        (chart,) = drawings(scatter_chart("scores", ("seconds", "DSC"), drawn, "")).values()
        marks = [float(each.get("cx", "nan")) for each in chart.findall("circle")]
        texts = {each.text: float(each.get("x", "nan")) for each in chart.findall("text")}
        return {point[0]: texts[point[0]] - mark for point, mark in zip(points, marks, strict=True)}

    apart = sides(("a", 1, 0.1), ("b", 10, 0.5), ("c", 100, 0.9))
    assert set(apart.values()) == {9.0}, "at the right"
    near = sides(("low", 1, 0.1), ("right", 21, 0.9), ("left", 20, 0.9), ("end", 1000, 0.5))
    assert near["left"] <= 0, "at the right there is the other mark"
    assert near["right"] == 9.0
