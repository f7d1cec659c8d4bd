"""The sections of a report that are tables: checks, input and design, from checks.json and run.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from pcdiff.report.elements import code, fact_list, light, product_text, table, value_text

INPUT_KINDS = {"ct": "CT in Hounsfield units", "mask": "bone mask"}
INPUT_FACTS = {  # key in `input_check` -> title, unit
    "format": ("Format", ""),
    "field_of_view_mm": ("Field of view", "mm"),
    "slice_thickness_mm": ("Slice thickness", "mm"),
    "tilt_deg": ("Gantry tilt", "degrees"),
    "threshold_hu": ("Bone threshold", "HU"),
    "noise_hu": ("Noise in soft tissue", "HU"),
    "streaks_hu": ("Metal streak artefacts", "HU"),
    "metal_ml": ("Metal", "ml"),
    "removed_ml": ("Removed (table, head holder, loose pieces)", "ml"),
}


def checks_section(checks: Mapping[str, Any] | None) -> str:
    """HTML: each check with its result, its text and its figures."""
    if checks is None:
        return "<p>This implant has not been checked. <code>pcdiff check</code> measures fit and printability.</p>"
    return "".join(
        f'<div class="check"><h3>{escape(str(check["title"]))}</h3>{light(check.get("passed"))}'
        f"<p>{escape(str(check.get('words', '')))}</p>{_figures(check.get('figures', []))}</div>"
        for check in checks["checks"]
    )


def _figures(figures: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for figure in figures:
        value, limit, unit = figure.get("value"), figure.get("limit"), str(figure.get("unit") or "")
        if type(value) is int:
            value = float(value)  # to be shown with thousands separators
        rule = "" if limit is None else f"{figure.get('rule') or ''} {value_text(limit)} {unit}".strip()
        passed = figure.get("passed")
        mark = "" if passed is None else light(bool(passed), "" if passed else "failed")
        rows.append([escape(str(figure["name"])), escape(f"{value_text(value)} {unit}".strip()), escape(rule), mark])
    return table(["", "measured", "limit", ""], rows, numbers=(1,)) if rows else ""


def input_section(record: Mapping[str, Any]) -> str:
    """HTML: the scan's grid and kind, what was measured in it, the defects found, and the warnings."""
    grid = " x ".join(str(n) for n in record["input"]["shape"])
    facts = {"Grid": f"{grid} voxels", "Spacing": f"{product_text(record['input']['spacing_mm'])} mm"}
    check = record.get("input_check") or {}
    if check:
        kind = str(check.get("kind"))
        facts = {"Kind": escape(INPUT_KINDS.get(kind, kind)), **facts}
    for key, (title, unit) in INPUT_FACTS.items():
        value = check.get(key)
        if value is not None:
            text = product_text(value) if isinstance(value, list | tuple) else value_text(value)
            facts[title] = escape(f"{text} {unit}".strip())
    for n, defect in enumerate(check.get("defects") or [], 1):
        location = defect.get("place") or defect.get("side")
        facts[f"Defect {defect.get('label', n)}"] = escape(f"{value_text(defect.get('area_cm2'))} cm\u00b2, {location}")
    warnings = "".join(f"<li>{escape(str(warning))}</li>" for warning in check.get("warnings") or [])
    return fact_list(facts) + (f'<div class="warnings"><b>Warnings</b><ul>{warnings}</ul></div>' if warnings else "")


def design_section(record: Mapping[str, Any], stage_titles: Mapping[str, str]) -> str:
    """HTML: settings, resources, and the seconds of each stage."""
    settings = "".join(f"{code(key)} {escape(value_text(value))}<br>" for key, value in record["settings"].items())
    stl = record["stl"]
    facts = {
        "Settings": settings,
        "Peak memory": f"{record['peak_memory_mb']} MB",
        "Distance of the bone to the statistical shape model": f"{value_text(record['prior_residual_mm'])} mm",
        "STL": f"{stl['triangles']:,} triangles, {value_text(stl['volume_ml'])} ml, "
        f"DSC {value_text(stl['dsc'])} with the volume",
        "Machine": escape(", ".join(f"{key} {value}" for key, value in record["machine"].items())),
    }
    seconds = {key: value for key, value in record["seconds"].items() if key != "total"}
    longest = max([*seconds.values(), 1e-9])
    rows = [
        [
            escape(stage_titles.get(key, key)),
            f"{value:.1f} s",
            f'<span class="bar" style="width:{140 * value / longest:.0f}px"></span>',
        ]
        for key, value in seconds.items()
    ]
    return fact_list(facts) + "<br>" + table(["stage", "seconds", ""], rows, numbers=(1,))
