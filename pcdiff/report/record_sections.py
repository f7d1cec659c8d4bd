"""The sections of a report that are tables: checks, input and design, from checks.json and run.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from pcdiff.figures import figure_text
from pcdiff.report.templates import fill
from pcdiff.report.words import product_text, value_text

BAR_PIXELS = 140  # of the longest stage
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


def checks_section(checks: Mapping[str, Any] | None) -> Markup:
    """Each check with its result, its text and its figures; a sentence for an implant that was not checked."""
    shown = [
        {
            "title": check["title"],
            "words": check.get("words", "").replace("cm2", "cm\u00b2"),
            "passed": check.get("passed"),
            "figures": list(map(_figure, check.get("figures", []))),
        }
        for check in (checks or {"checks": []})["checks"]
    ]
    return fill("checks.html", checks=None if checks is None else shown)


def _figure(figure: Mapping[str, Any]) -> dict[str, Any]:
    limit, unit = figure.get("limit"), (figure.get("unit") or "").replace("cm2", "cm\u00b2")
    return {
        "name": figure["name"],
        "value": figure_text(figure.get("value"), unit),
        "limit": "" if limit is None else f"{figure.get('rule') or ''} {figure_text(limit, unit)}".strip(),
        "passed": figure.get("passed"),
    }


def input_section(record: Mapping[str, Any]) -> Markup:
    """The scan's grid and kind, what was measured in it, the defects found, and the warnings."""
    grid = " x ".join(str(n) for n in record["input"]["shape"])
    facts = {"Grid": f"{grid} voxels", "Spacing": f"{product_text(record['input']['spacing_mm'])} mm"}
    check = record.get("input_check") or {}
    if check:
        kind = str(check.get("kind"))
        facts = {"Kind": INPUT_KINDS.get(kind, kind), **facts}
    for key, (title, unit) in INPUT_FACTS.items():
        value = check.get(key)
        if value is not None:
            text = product_text(value) if isinstance(value, list | tuple) else value_text(value)
            facts[title] = f"{text} {unit}".strip()
    for n, defect in enumerate(check.get("defects") or [], 1):
        location = defect.get("place") or defect.get("side")
        facts[f"Defect {defect.get('label', n)}"] = f"{value_text(defect.get('area_cm2'))} cm\u00b2, {location}"
    return fill("input.html", facts=facts, warnings=check.get("warnings") or [])


def design_section(record: Mapping[str, Any], stage_titles: Mapping[str, str]) -> Markup:
    """The settings that were given a value, resources, and the seconds of each stage."""
    stl = record["stl"]
    facts = {
        "Peak memory": f"{record['peak_memory_mb']} MB",
        "Distance of the bone to the statistical shape model": f"{value_text(record['prior_residual_mm'])} mm",
        "STL": f"{stl['triangles']:,} triangles, {value_text(stl['volume_ml'])} ml, "
        f"DSC {stl['dsc']:.3f} with the volume",
        "Machine": ", ".join(f"{key} {value}" for key, value in record["machine"].items()),
    }
    seconds = {key: value for key, value in record["seconds"].items() if key != "total"}
    longest = max([*seconds.values(), 1e-9])
    stages = [
        {
            "title": stage_titles.get(key, key),
            "seconds": f"{value:.1f} s",
            "width": f"{BAR_PIXELS * value / longest:.0f}",
        }
        for key, value in seconds.items()
    ]
    settings = {name: value for name, value in record["settings"].items() if value is not None}
    return fill("design.html", settings=settings, facts=facts, stages=stages)
