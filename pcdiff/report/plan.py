"""The first page of a report, a plan for the surgeon: defect, implant, what was checked, and room to sign."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from pcdiff.figures import of_pieces
from pcdiff.report.contents import CaseContents
from pcdiff.report.fixation import fixation_line
from pcdiff.report.templates import fill
from pcdiff.report.words import defect_numbers, piece_names

# g/cm3: PEEK (medical grade, ISO 1183), Ti-6Al-4V (ASTM F136), PMMA bone cement.
DENSITIES = {"PEEK": 1.30, "titanium": 4.43, "PMMA": 1.18}


def plan_section(contents: CaseContents, picture: Markup) -> Markup:
    """The first page. picture: of the defect and the implant in it."""
    record = contents.record
    numbers = defect_numbers(record)
    return fill(
        "plan.html",
        case=case_title(record),
        version=plan_version(record),
        picture=picture,
        verdict=verdict(contents.checks),
        failed=[check for check in _checks(contents) if check.get("passed") is False],
        passed=[check["title"] for check in _checks(contents) if check.get("passed")],
        open=[check["title"] for check in _checks(contents) if check.get("passed") is None],
        defects=[_defect_row(defect) | {"number": numbers.get(defect["label"])} for defect in _defects(record)],
        chosen=isinstance(record["settings"].get("defects"), list),
        left_open=_left_open(record),
        fixation=fixation_line(record),
        implant=_implant_rows(contents),
        densities=DENSITIES,
        insertion=of_pieces((contents.checks or {}).get("insertion") or []),
        warnings=(record.get("input_check") or {}).get("warnings") or [],
    )


def case_title(record: Mapping[str, Any]) -> str:
    """What the user calls the case (`--case-id`), else a name from the scan's sha256, which names no patient."""
    given = record["settings"].get("case_id")
    return str(given) if given else f"case {record['input']['sha256'][:8]}"


def plan_version(record: Mapping[str, Any]) -> str:
    """Date and program of the plan, and the beginning of the sha256 of implant.stl: it differs for another shape."""
    stl = record["stl"].get("sha256")
    return f"{record['date'][:10]}, pcdiff {record['pcdiff']}" + (f", implant.stl {stl[:8]}" if stl else "")


def verdict(checks: Mapping[str, Any] | None) -> dict[str, Any]:
    """Whether all checks passed, None for an implant that was not checked, and a line on it."""
    if checks is None:
        return {"passed": None, "text": "not checked"}
    results = [check["passed"] for check in checks["checks"] if check.get("passed") is not None]
    passed = sum(bool(result) for result in results)
    remark = "" if passed == len(results) else "; see the failed checks"
    return {"passed": bool(checks.get("passed")), "text": f"{passed} of {len(results)} checks passed{remark}"}


def _checks(contents: CaseContents) -> list[Mapping[str, Any]]:
    return [] if contents.checks is None else list(contents.checks["checks"])


def _defects(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return (record.get("input_check") or {}).get("defects") or []


def _defect_row(defect: Mapping[str, Any]) -> dict[str, Any]:
    length, width, area = defect.get("length_mm"), defect.get("width_mm"), defect.get("area_cm2")
    return {
        "place": str(defect.get("place") or defect.get("side") or "-"),
        "size": "-" if length is None or width is None else f"{length:.0f} x {width:.0f} mm",
        "area": "-" if area is None else f"{area:.0f} cm\u00b2",
    }


def _left_open(record: Mapping[str, Any]) -> list[str] | None:
    """A line for each opening that the implant does not close; None for a record without them."""
    left = record.get("left_open")
    if left is None:
        return None
    lines = []
    for defect in left:
        row = _defect_row(defect)
        named = f"Defect {defect['number']}" if defect.get("number") else "Opening"
        size = "" if row["size"] == "-" else f"{row['size']}, "
        why = defect["why"].replace("cm2", "cm\u00b2")
        lines.append(f"{named}: {row['place']}, {size}{row['area']} ({why})")
    return lines


def _implant_rows(contents: CaseContents) -> dict[str, str]:
    """Size of each piece, volume and weight of what is printed, and percentiles of the thickness."""
    record = contents.record
    pieces, ml, rows = record["pieces"], contents.mesh.volume_ml, {}
    for piece, named in zip(pieces, piece_names(record), strict=True):
        size = " x ".join(f"{piece[side]:.0f}" for side in ("length_mm", "width_mm", "height_mm"))
        rows["Length x width x height" + (f", {named}" if named else "")] = f"{size}\u00a0mm"
    rows["Volume"] = f"{ml:.1f} ml"
    rows["Weight"] = ", ".join(f"{material} {ml * density:.0f} g" for material, density in DENSITIES.items())
    if engraved := (record.get("fitting") or {}).get("engraved"):
        text, depth = engraved[0]["text"], f"{engraved[0]['depth_mm']:g}\u00a0mm deep"
        rows["Engraved"] = f"{text}, in the inner surface{_engraved_pieces(record, engraved)}, {depth}"
    low, median, high = (contents.figure(f"thickness_{name}") for name in ("p5", "median", "p95"))
    if low is not None and median is not None and high is not None:
        rows["Thickness"] = f"{median:.1f} mm (median); 90 % from {low:.1f} to {high:.1f} mm"
    return rows


def _engraved_pieces(record: Mapping[str, Any], engraved: Sequence[Mapping[str, Any]]) -> str:
    """Of which pieces a text is in the surface, such as " of the piece for defect 2"; empty for a single piece."""
    if len(record["pieces"]) == 1:
        return ""
    if len(engraved) == len(record["pieces"]):
        return " of each piece"
    numbers = sorted(defect_numbers(record).get(each["defect"], each["defect"]) for each in engraved)
    which = "piece for defect" if len(numbers) == 1 else "pieces for defects"
    return f" of the {which} {' and '.join(map(str, numbers))}, not of every piece"
