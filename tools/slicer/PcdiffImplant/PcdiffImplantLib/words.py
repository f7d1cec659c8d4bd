"""What pcdiff found, as HTML for the panel."""

from collections.abc import Iterable
from html import escape
from typing import Any

NOTICE = "Not a medical device: for research only, not for diagnosis or treatment."


def design_words(record: dict[str, Any], checks: list[dict[str, Any]], report: str) -> str:
    """A designed implant: volume, what is on it, warnings, defects, failed checks, and a link.

    record: as run.json. checks: the list in checks.json. report: its URI.
    """
    pieces, defects = len(record["pieces"]), record["defects"]
    lines = [f'<b>Implant of {record["implant_ml"]:.1f} ml.</b> <a href="{escape(report)}">Open the report</a>']
    if record["members_ml"]:
        lines.append(f"Recommended: {escape(record['recommended_because'])}.")
    if pieces != defects:
        lines.append(f"The implant has {_count(pieces, 'piece')} for {_count(defects, 'defect')}: look at it closely.")
    if engraved := record["fitting"]["engraved"]:
        lines.append(f"Engraved in the mesh, not in the volume: {escape(engraved[0]['text'])}.")
    if marks := record["fixation"]:
        lines.append(f"Scene and report show {_count(len(marks), 'fixation mark')}.")
    if record["unusual_head"]:
        lines.append("The head differs from those that the shape model knows: does it lie upright in patient axes?")
    found = record["input_check"]
    places = (f"{defect['place']}, {defect['area_cm2']:.0f} cm\u00b2" for defect in found["defects"])
    return "".join(
        [*map(_paragraph, lines), _list("Warnings", found["warnings"]), _list("Defects", places), check_words(checks)]
    )


def check_words(checks: list[dict[str, Any]]) -> str:
    """The checks that failed, with what was measured, or that none did. checks: the list in checks.json."""
    failed = [f"{check['title']}: no. {check['words']}" for check in checks if check["passed"] is False]
    result = _list("Checks that failed", failed) or _paragraph("<b>Passes every check.</b>")
    return result + _paragraph(NOTICE)


def error_words(error: object) -> str:
    """An error in one line."""
    return _paragraph(f"<b>{escape(str(error))}</b>")


def _list(heading: str, lines: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"{_paragraph(f'<b>{heading}</b>')}<ul>{items}</ul>" if items else ""


def _paragraph(html: str) -> str:
    return f"<p>{html}</p>"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
