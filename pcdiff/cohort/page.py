"""`cohort.html`: a table over all cases, to sort and to filter, in one file that opens without a network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pcdiff import NOTICE
from pcdiff.cohort.rows import JOURNAL, TABLE, Row
from pcdiff.pipeline.names import without_folders
from pcdiff.report.page import MAX_PAGE_BYTES, write_page
from pcdiff.report.templates import fill

PAGE = "cohort.html"
MAX_ROWS = 10_000  # a browser is slow with more
PICTURES_BYTES = MAX_PAGE_BYTES // 2


def write_cohort_page(out: Path, rows: Sequence[Row]) -> None:
    """Writes the page into an existing folder: cases that failed first, then those with failed checks, then the others.

    More than MAX_ROWS cases, and pictures of more than PICTURES_BYTES, are left out from the end; the page says so.
    """
    ordered = sorted(rows, key=lambda row: (not row.failed, not row.failed_checks, row.case))
    shown, left = [], PICTURES_BYTES
    for row in ordered[:MAX_ROWS]:
        left -= len(row.picture)
        shown.append(_values(out, row, with_picture=left >= 0))
    checks = Counter(title for row in rows for title in row.failed_checks)
    body = fill(
        "cohort.html",
        notice=NOTICE,
        cards=_cards(rows),
        checks=sorted(checks.items(), key=lambda each: (-each[1], each[0])),
        rows=shown,
        total=len(rows),
        without_picture=sum(not each["picture"] for each in shown if not each["failed"]),
        files=(TABLE, JOURNAL),
    )
    write_page(out / PAGE, "Cohort - pcdiff", body)


def _cards(rows: Sequence[Row]) -> list[tuple[str, int]]:
    """What the page counts: (words, number)."""
    failed = sum(row.failed for row in rows)
    unfit = sum(bool(row.failed_checks) for row in rows)
    return [
        ("cases", len(rows)),
        ("pass every check", len(rows) - failed - unfit),
        ("fail a check", unfit),
        ("without an implant", failed),
    ]


def _values(out: Path, row: Row, with_picture: bool) -> dict[str, Any]:
    """What the template shows of a case. Paths of scans stay in the other files: folders name patients."""
    report = f"{row.case}/report.html"
    return {
        "case": row.case,
        "failed": row.failed,
        "link": quote(report) if not row.failed and (out / report).is_file() else None,
        "picture": row.picture if with_picture else "",
        "checks": row.failed_checks,
        "reason": without_folders(row.reason, Path(row.scan)),
        "warnings": row.warnings,
        "defects": row.defects,
        "implant_ml": row.implant_ml,
        "seconds": row.seconds,
        "memory": row.peak_memory_mb,
    }
