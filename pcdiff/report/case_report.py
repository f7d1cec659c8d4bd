"""`report.html` of a case: one file with pictures, a 3D view, the checks, the input and the design."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from pcdiff import NOTICE
from pcdiff.report.contents import CaseContents
from pcdiff.report.elements import card, code, fact_list, light, section, table
from pcdiff.report.gallery import case_picture, sections, views
from pcdiff.report.page import picture_html, write_page
from pcdiff.report.record_sections import checks_section, design_section, input_section
from pcdiff.report.render import render, write_png
from pcdiff.report.scene import SHOWN_CANDIDATES, Scene, case_scene
from pcdiff.report.surfaces import oblique_view, outward_direction
from pcdiff.report.viewer import scene_html

REPORT, PREVIEW = "report.html", "preview.png"
THUMBNAIL_MM = 1.0  # per pixel
LIMITATIONS = (
    "The statistical shape model describes the vault as a height field: one outer radius and one thickness for each "
    "direction from the cranial centre. Its error at the orbital roof, the zygoma and the mastoid is about 2 mm: "
    "inspect the implant closely there.",
    "The shipped weights were trained on 59 heads of one data set, most of them with one defect at the back of the "
    "head.",
    "The volume and the STL agree to a fraction of a voxel. Neither holds details finer than the scan's voxels.",
    "The 3D view and the pictures show simplified surfaces. Print and measure the STL.",
    "The user is responsible for the use of the implant and for the regulatory approval that it needs.",
)


def write_report(folder: Path, contents: CaseContents) -> None:
    """Writes report.html and preview.png into an existing folder. Sections without contents are left out.

    Raises:
        InputError: a file cannot be written, or the page is too large.
    """
    scene = case_scene(contents)
    preview = case_picture(scene.skull.shape, scene.implant.shape)
    write_png(preview, folder / PREVIEW)
    record = contents.record
    name = PurePath(str(record["input"]["path"])).name
    parts = [
        f'<p class="notice" role="note">{escape(NOTICE)}</p><main>',
        _header(name, record, contents.checks),
        section("Pictures", _pictures(scene, contents, preview)),
        section("3D view", scene_html(scene), "interactive"),
        section("Checks", checks_section(contents.checks)),
        section("Candidates", _candidates(contents, scene)),
        section("Input", input_section(record)),
        section("Design", design_section(record, contents.stage_titles)),
        section("Limitations", f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in LIMITATIONS)}</ul>"),
        f'</main><p class="notice" role="note">{escape(NOTICE)}</p>',
    ]
    write_page(folder / REPORT, f"{name}: cranial implant", "".join(parts))


def _header(name: str, record: Mapping[str, Any], checks: Mapping[str, Any] | None) -> str:
    facts = {
        "File": code(name),
        "SHA-256": code(record["input"]["sha256"]),
        "Date": escape(str(record["date"])),
        "Software": f"pcdiff {escape(str(record['pcdiff']))}",
        "Weights": "<br>".join(f"{code(file)} {code(digest[:16])}" for file, digest in record["weights"].items()),
    }
    return (
        f'<header><h1>Cranial implant</h1><p class="lead">for {escape(name)}</p>'
        f'<div class="verdict">{_overall_result(checks)}</div></header>'
        f'<div class="cards">{_cards(record)}</div>'
        f"<section>{fact_list(facts)}</section>"
    )


def _cards(record: Mapping[str, Any]) -> str:
    pieces, defects, candidates = len(record["pieces_ml"]), record["defects"], len(record.get("members_ml", []))
    cards = [
        (f"{record['implant_ml']:.1f} ml", "implant volume"),
        (str(defects), "defect" if defects == 1 else "defects"),
        (str(pieces), "implant piece" if pieces == 1 else "implant pieces"),
    ]
    if candidates > 1:
        cards.append((str(candidates), "candidates"))
    cards.append((f"{record['seconds']['total']:.0f} s", "design time"))
    return "".join(card(*each) for each in cards)


def _overall_result(checks: Mapping[str, Any] | None) -> str:
    if checks is None:
        return light(None, "not checked")
    results = [check["passed"] for check in checks["checks"] if check.get("passed") is not None]
    passed = sum(bool(result) for result in results)
    remark = "" if passed == len(results) else "; see the failed checks below"
    return light(bool(checks.get("passed")), f"{passed} of {len(results)} checks passed{remark}")


def _pictures(scene: Scene, contents: CaseContents, preview: np.ndarray) -> str:
    whole = picture_html(preview, "the defect, the implant in place, and the implant alone", "whole")
    drawn = [picture_html(picture, caption) for caption, picture in views(scene)]
    cut = [picture_html(picture, caption) for caption, picture in sections(contents.skull, contents.implant)]
    return f'{whole}<div class="pictures">{"".join(drawn)}</div><div class="pictures">{"".join(cut)}</div>'


def _candidates(contents: CaseContents, scene: Scene) -> str:
    """Volume and checks of each candidate of an ensemble, and a picture of the first of them."""
    volumes = contents.record.get("members_ml", [])
    if len(volumes) < 2:
        return ""
    reason = contents.record.get("recommended_because")
    recommendation = f"<p>Recommended: {escape(str(reason))}.</p>" if reason else ""
    pictures = "".join(_candidate_pictures(scene, contents.record.get("recommended")))
    few = len(volumes) <= SHOWN_CANDIDATES
    note = "" if few else f"<p>The pictures show the first {SHOWN_CANDIDATES} of {len(volumes)} candidates.</p>"
    return f'{recommendation}{_candidate_table(contents)}<div class="pictures small">{pictures}</div>{note}'


def _candidate_table(contents: CaseContents) -> str:
    recommended = contents.record.get("recommended")
    by_candidate = {
        number: {check["name"]: check for check in checks["checks"]}
        for number, checks in sorted(contents.candidate_checks.items())
    }
    titles = {name: str(check["title"]) for checks in by_candidate.values() for name, check in checks.items()}
    rows, classes = [], []
    for number, volume in enumerate(contents.record["members_ml"], 1):
        checks = by_candidate.get(number, {})
        lights = [light(checks[name].get("passed")) if name in checks else "" for name in titles]
        mark = " <b>recommended</b>" if number == recommended else ""
        rows.append([f"{number}{mark}", f"{volume:.1f} ml", *lights])
        classes.append("best" if number == recommended else "")
    return table(["candidate", "volume", *(escape(title) for title in titles.values())], rows, classes, numbers=(1,))


def _candidate_pictures(scene: Scene, recommended: int | None) -> list[str]:
    skull, pictures = scene.skull.shape, []
    for surface in scene.surfaces:
        if surface.name.startswith("candidate "):
            drawn = render([skull, surface.shape], oblique_view(outward_direction(skull, surface.shape)), THUMBNAIL_MM)
            remark = ", recommended" if surface.name == f"candidate {recommended}" else ""
            pictures.append(picture_html(drawn, surface.name + remark))
    return pictures
