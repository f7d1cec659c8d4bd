"""Which scans a cohort designs, what memory each takes, and the journal of its rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cohort_rows import SETTINGS, job, row_of

from pcdiff.cohort.dispatch import waves
from pcdiff.cohort.inputs import find_scans
from pcdiff.cohort.memory import BASE_MB, expected_mb
from pcdiff.cohort.rows import Journal
from pcdiff.errors import InputError
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import write_volume


def test_scans_from_patterns_folders_and_tables(tmp_path: Path) -> None:
    for name in (
        "p1/scan/a.dcm",
        "p2/scan/a.dcm",
        "p2/notes.txt",
        "images/1.nrrd",
        "images/2.nii.gz",
        "images/.3.nrrd",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("old.hdr", "old.img", "alone.img"):
        (tmp_path / "images" / name).touch()
    assert [*find_scans([f"{tmp_path}/p*/scan"])] == [tmp_path / "p1/scan", tmp_path / "p2/scan"]
    assert [*find_scans([f"{tmp_path}/**/*.nrrd"])] == [tmp_path / "images/1.nrrd"]
    names = [
        scan.name for scan in find_scans([tmp_path / "images", tmp_path / "images/1.nrrd", tmp_path / "gone.nrrd"])
    ]
    assert names == ["1.nrrd", "2.nii.gz", "alone.img", "old.hdr", "gone.nrrd"]
    table = tmp_path / "cases.csv"
    for text in ("case,scan\nanna,images/1.nrrd\n,p1/scan\n", "\ufeffage;scan;case\n7;images/1.nrrd;anna\n8;p1/scan\n"):
        table.write_text(text)
        assert find_scans([table]) == {tmp_path / "images/1.nrrd": "anna", tmp_path / "p1/scan": None}


def test_a_table_names_a_scan_that_is_also_given_otherwise(tmp_path: Path) -> None:
    (tmp_path / "a.nrrd").touch()
    table = tmp_path / "cases.csv"
    table.write_text("case,scan\nanna,a.nrrd\n,,\n")  # with an empty row, as spreadsheets write them
    for given in ([table, tmp_path / "a.nrrd"], [tmp_path / "*.nrrd", table]):
        assert find_scans(given) == {tmp_path / "a.nrrd": "anna"}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("a.nrrd,anna\nb.nrrd,\n./a.nrrd,berta\n", r"cases\.csv, row 4: .*a\.nrrd, .* that of .*cases\.csv, row 2;"),
        ("a.nrrd,anna\nb.nrrd,../anna\n", r"cases\.csv, row 3, column `case`: .* got '\.\./anna'"),
        ("a.nrrd,..\n", r"cases\.csv, row 2, column `case`: .* got '\.\.'"),
        ("a.nrrd,\n\n,anna\n", r"cases\.csv, row 4, column `scan`: expected a scan, got an empty cell"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(rows: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text(f"scan,case\n{rows}")
    with pytest.raises(InputError, match=said):
        find_scans([tmp_path / "cases.csv"])


@pytest.mark.parametrize("text", ["", "file\na.nrrd\n", 'scan\n"a.nrrd\n', "scan\n\xff"])
def test_what_is_no_table_of_scans(tmp_path: Path, text: str) -> None:
    (tmp_path / "cases.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"cases\.csv: expected a table with a column `scan`"):
        find_scans([tmp_path / "cases.csv"])


def test_a_table_without_rows(tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text("scan,case\n")
    with pytest.raises(InputError, match="got the columns' names alone"):
        find_scans([tmp_path / "cases.csv"])


def test_a_table_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a table with a column `scan`, found none; check the path"):
        find_scans([tmp_path / "cases.csv"])


def test_a_pattern_without_a_match(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="got no match"):
        find_scans([tmp_path / "p*" / "scan"])


def test_memory_by_the_header(tmp_path: Path) -> None:
    path = tmp_path / "a.nrrd"
    write_volume(Volume(np.ones((100, 200, 50), bool), np.eye(4)), path)
    assert expected_mb(path, SETTINGS) == BASE_MB + 10
    assert expected_mb(path, replace(SETTINGS, ensemble=3)) > expected_mb(path, SETTINGS) + 500
    assert expected_mb(tmp_path / "gone.nrrd", SETTINGS) == BASE_MB


def test_large_cases_run_among_fewer_workers(tmp_path: Path) -> None:
    small, large, giant = (job(tmp_path / name, mb) for name, mb in (("s", 900), ("l", 3000), ("g", 9000)))
    assert waves([large, small, giant, small], 4, 8000) == [(2, [small, small]), (1, [large, giant])] or waves(
        [large, small, giant, small], 4, 8000
    ) == [(2, [small, small]), (1, [large]), (1, [giant])]
    assert waves([small] * 9, 4, 8000) == [(4, [small] * 9)]
    assert waves([], 4, 8000) == []


def test_the_journal_keeps_the_last_row_of_each_scan(tmp_path: Path) -> None:
    first, second = (row_of(job(tmp_path / name)) for name in "ab")
    with Journal(tmp_path) as journal:
        journal.add(first)
        journal.add(second)
        with pytest.raises(InputError, match="another `pcdiff cohort` writes here"), Journal(tmp_path):
            pass
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole + b'{"case": "c"}\nno row\n' + whole[:50])
    with Journal(tmp_path) as journal:
        assert [*journal.earlier.values()] == [first, second]
        journal.add(replace(first, implant_ml=2.5))
        assert len(journal.path.read_bytes().splitlines()) == 6
    with Journal(tmp_path) as journal:
        assert [*journal.earlier.values()] == [replace(first, implant_ml=2.5), second]
        assert len(journal.path.read_bytes().splitlines()) == 2
