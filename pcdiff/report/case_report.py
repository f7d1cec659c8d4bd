"""`report.html` of a case: one file with the plan, slices, a 3D view, the checks, the input and the design."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath

from markupsafe import Markup

from pcdiff import NOTICE
from pcdiff.report.contents import CaseContents
from pcdiff.report.fixation import fixation_section
from pcdiff.report.gallery import case_picture, engraving_picture, views
from pcdiff.report.page import picture_html, write_page
from pcdiff.report.plan import case_title, plan_section, plan_version
from pcdiff.report.record_sections import checks_section, design_section, input_section
from pcdiff.report.render import render, write_png
from pcdiff.report.scene import SHOWN_CANDIDATES, Scene, case_scene
from pcdiff.report.slices import Slices
from pcdiff.report.surfaces import oblique_view, outward_direction
from pcdiff.report.templates import fill
from pcdiff.report.viewer import scene_html
from pcdiff.report.words import defect_numbers

REPORT, PREVIEW = "report.html", "preview.png"
PREVIEW_CAPTION = "the defect, the implant in place, and the implant alone"
THUMBNAIL_MM = 1.0  # per pixel
DRAWERS = 2  # threads: most of the work releases the interpreter's lock
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
    with ThreadPoolExecutor(DRAWERS) as pool:
        slicing = pool.submit(lambda: Slices(contents).html())
        scene = case_scene(contents)
        drawing = pool.submit(case_picture, scene.skull.shape, scene.implant.shape)
        viewing = pool.submit(lambda: list(views(scene)))
        preview, drawn, slices = drawing.result(), viewing.result(), slicing.result()
    write_png(preview, folder / PREVIEW)
    record = contents.record
    name = PurePath(record["input"]["path"]).name
    body = fill(
        "case.html",
        notice=NOTICE,
        name=name,
        record=record,
        plan=plan_section(contents, picture_html(preview, PREVIEW_CAPTION, "whole")),
        slices=slices,
        drawn=[picture_html(picture, caption) for caption, picture in drawn],
        engraved=_engraved(contents),
        scene=scene_html(scene),
        fixation=fixation_section(record, scene),
        checks=checks_section(contents.checks),
        candidates=_candidates(contents, scene),
        input=input_section(record),
        design=design_section(record, contents.stage_titles),
        limitations=LIMITATIONS,
    )
    title = case_title(record)
    # Isolated, so that a name from right to left leaves the rest of the line in its order.
    header = f"Plan of a cranial implant: \u2068{title}\u2069. {plan_version(record)}. Not a medical device."
    write_page(folder / REPORT, f"{title}: cranial implant", body, header)


def _engraved(contents: CaseContents) -> list[Markup]:
    """A picture of each engraved text."""
    record = contents.record
    numbers, figures = defect_numbers(record), []
    for each in (record.get("fitting") or {}).get("engraved") or []:
        where = f", defect {numbers.get(each['defect'], each['defect'])}" if record["defects"] > 1 else ""
        caption = f"engraved, seen from inside{where}: {each['text']}"
        figures.append(picture_html(engraving_picture(contents.mesh, each), caption))
    return figures


def _candidates(contents: CaseContents, scene: Scene) -> Markup:
    """Volume and checks of each candidate of an ensemble, and pictures of the first ones; empty without an ensemble."""
    volumes, recommended = contents.record.get("members_ml", []), contents.record.get("recommended")
    if len(volumes) < 2:
        return Markup()
    by_candidate = {
        number: {check["name"]: check for check in checks["checks"]}
        for number, checks in sorted(contents.candidate_checks.items())
    }
    titles = {name: check["title"] for checks in by_candidate.values() for name, check in checks.items()}
    rows = []
    for number, volume in enumerate(volumes, 1):
        checks = by_candidate.get(number, {})
        lights = [{"known": name in checks, "passed": checks.get(name, {}).get("passed")} for name in titles]
        row = {"number": number, "volume": f"{volume:.1f} ml", "recommended": number == recommended, "lights": lights}
        rows.append(row)
    few = len(volumes) <= SHOWN_CANDIDATES
    return fill(
        "candidates.html",
        reason=contents.record.get("recommended_because"),
        titles=titles.values(),
        rows=rows,
        pictures=_candidate_pictures(scene, recommended),
        note="" if few else f"The pictures show the first {SHOWN_CANDIDATES} of {len(volumes)} candidates.",
    )


def _candidate_pictures(scene: Scene, recommended: int | None) -> list[Markup]:
    skull, pictures = scene.skull.shape, []
    for surface in scene.surfaces:
        if surface.name.startswith("candidate "):
            drawn = render([skull, surface.shape], oblique_view(outward_direction(skull, surface.shape)), THUMBNAIL_MM)
            remark = ", recommended" if surface.name == f"candidate {recommended}" else ""
            pictures.append(picture_html(drawn, surface.name + remark))
    return pictures
