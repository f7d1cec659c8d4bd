"""The table of a cohort as a page: pictures, sorting and filters, without a network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cohort_rows import job, row_of

from pcdiff.cohort.page import write_cohort_page
from pcdiff.cohort.picture import _seen, _view
from pcdiff.geometry.volume import Volume


def test_the_picture_shows_the_side_of_the_implant() -> None:
    """A ball of bone with implant on its left: the viewer sees the left, the front to the viewer's left."""
    z, y, x = np.indices((40, 50, 60)) - np.array([20, 25, 30])[:, None, None, None]
    ball = (x / 28) ** 2 + (y / 23) ** 2 + (z / 18) ** 2 < 1
    for flip in (1, -1):
        affine = np.array([[0, 0, flip, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])  # (z, y, x) of a file
        skull = Volume(ball & (x < 20), affine)
        implant = Volume(ball & (x >= 20) & (z > 0) & (y < 0), affine)  # superior, anterior
        axis, sign = _view(skull, implant)
        assert (axis, sign) == (2, 1)
        depth, is_implant, row_mm, column_mm = _seen(skull, implant, axis, sign)
        assert (row_mm, column_mm) == (1, 2)
        rows, columns = np.nonzero(is_implant)
        assert rows.mean() < depth.shape[0] / 2  # above
        # Seen from the left (+x in LPS) the front is on the viewer's left; from the right, on the right.
        assert (columns.mean() < depth.shape[1] / 2) == (flip == 1)


def test_the_page_sorts_and_filters_without_a_network(tmp_path: Path) -> None:
    from test_report import CHROMIUM

    rows = [
        row_of(job(tmp_path / "<b>anna"), implant_ml=9.5, failed_checks=["Thickness"]),
        row_of(job(tmp_path / "berta"), implant_ml=80.0, failed_checks=["Thickness", "One piece"]),
        row_of(job(tmp_path / "carl"), implant_ml=20.0),
        row_of(job(tmp_path / "dora"), state="failed", reason=f"{tmp_path}/dora.nrrd: not an NRRD file"),
    ]
    write_cohort_page(tmp_path, rows)
    text = (tmp_path / "cohort.html").read_text()
    assert "&lt;b&gt;anna" in text
    assert str(tmp_path) not in text  # folders name patients
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        wrong: list[str] = []
        page.on("console", lambda message: wrong.append(message.text))
        page.on("request", lambda request: request.url.startswith("file") or wrong.append(request.url))
        page.goto(f"file://{tmp_path}/cohort.html")

        def shown() -> list[str]:
            return [row.query_selector_all("td")[1].inner_text() for row in page.query_selector_all("tbody tr:visible")]

        assert shown() == ["dora", "<b>anna", "berta", "carl"]
        page.get_by_role("button", name="Implant, ml").click()
        assert shown() == ["<b>anna", "carl", "berta", "dora"]
        page.get_by_role("button", name="Implant, ml").click()
        assert shown() == ["berta", "carl", "<b>anna", "dora"]
        page.select_option("#filter", "check:One piece")
        assert shown() == ["berta"]
        page.select_option("#filter", "check:Thickness")
        assert shown() == ["berta", "<b>anna"]
        page.select_option("#filter", "")
        page.fill("#find", "nrrd file")
        assert shown() == ["dora"]
        assert page.inner_text("#shown") == "1 of 4 shown"
        assert page.locator("aside, main").count() == 2
        assert page.locator("th:empty, body > p").count() == 0, "heads have texts, and all text a landmark"
        page.fill("#find", "")
        page.set_viewport_size({"width": 390, "height": 800})
        boxes = [cell.bounding_box() for cell in page.locator("td.result, #filter").all()]
        assert all(box["x"] + box["width"] <= 390 for box in boxes), "nothing is cut off on a phone"
        assert min(box["width"] for box in boxes) > 200
        assert page.get_by_role("button", name="Implant, ml").is_visible()
        assert not wrong
        browser.close()


def test_a_large_cohort_keeps_the_page_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pcdiff.cohort.page.PICTURES_BYTES", 25)
    monkeypatch.setattr("pcdiff.cohort.page.MAX_ROWS", 3)
    rows = [row_of(job(tmp_path / name), picture="data:0123456") for name in "abcd"]
    write_cohort_page(tmp_path, [*rows, replace(rows[0], case="z", state="failed", picture="")])
    text = (tmp_path / "cohort.html").read_text()
    assert "The first 3 of 5 cases" in text
    assert text.count("<img") == 2
