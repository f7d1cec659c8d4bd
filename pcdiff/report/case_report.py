"""`report.html` of a case: one file that says what was made of what, how well it fits, and shows it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from pcdiff import NOTICE
from pcdiff.errors import InputError
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import read_volume
from pcdiff.report.gallery import sections, views
from pcdiff.report.html import picture_html, scene_html, write_page
from pcdiff.report.render import case_picture, render, write_png
from pcdiff.report.scene import SHOWN_CANDIDATES, Scene, case_scene
from pcdiff.report.surfaces import facing, slanted

REPORT, PREVIEW, CHECKS = "report.html", "preview.png", "checks.json"
THUMBNAIL_MM = 1.0  # per pixel
LIGHTS = {True: ("good", "passed"), False: ("bad", "look at this"), None: ("none", "not judged")}
LIMITS = (
    "A height field over directions from the cranial centre describes the vault. The orbital roof, zygoma and mastoid "
    "are known to 2 mm only: look closely there.",
    "The shipped weights have learned from 59 heads of one data set, most with one defect in the back of the head.",
    "The volume and the STL agree to a fraction of a voxel. What is finer than the scan's voxels is not in them.",
    "The 3D view and the pictures show thinned surfaces. Print and measure the STL.",
    "Whoever uses the implant is responsible for it, and for the approval that their country asks for.",
)
STAGES = {
    "read": "reading the scan",
    "points": "completing the surface",
    "reconstruct": "solid from points",
    "mesh": "surface of the solid",
    "write": "writing",
    "check": "checks",
}


def write_report(folder: Path, record: dict[str, Any], skull: Volume) -> None:
    """Writes report.html and preview.png into a case folder, from its record, its files and its defective skull.

    Parts of which there are no files are left out. Raises InputError where a file cannot be read or written.
    """
    checks = read_checks(folder / CHECKS)
    implant = read_volume(folder / "implant.nrrd")
    scene = case_scene(folder, skull)
    shown = scene.surface("implant")
    assert shown is not None
    preview = case_picture(scene.surfaces[0].shape, shown.shape)
    write_png(preview, folder / PREVIEW)
    name = PurePath(str(record["input"]["path"])).name
    parts = [
        f'<p class="notice" role="note">{escape(NOTICE)}</p><main>',
        _header(name, record, checks),
        _section("Pictures", _pictures(scene, skull, implant, preview)),
        _section("In three dimensions", scene_html(scene), "interactive"),
        _section("Checks", _checks(checks)),
        _section("Candidates", _candidates(folder, record, scene)),
        _section("What was read", _input(record)),
        _section("How it was made", _making(record)),
        _section("Limits", f"<ul>{''.join(f'<li>{escape(limit)}</li>' for limit in LIMITS)}</ul>"),
        f'</main><p class="notice" role="note">{escape(NOTICE)}</p>',
    ]
    write_page(folder / REPORT, f"{name}: cranial implant", "".join(parts))


def read_checks(path: Path) -> dict[str, Any] | None:
    """What `pcdiff check` found, None where there is no such file. Raises InputError for another file."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: expected checks by `pcdiff check`, got no JSON; make them again") from error
    if not isinstance(found, dict) or not isinstance(found.get("checks"), list):
        raise InputError(f"{path}: expected checks by `pcdiff check`, got other JSON; make them again")
    return found


def _header(name: str, record: dict[str, Any], checks: dict[str, Any] | None) -> str:
    pieces, defects = len(record["pieces_ml"]), record["defects"]
    cards = [
        (f"{record['implant_ml']:.1f} ml", "implant"),
        (str(defects), "defect" if defects == 1 else "defects"),
        (str(pieces), "piece" if pieces == 1 else "pieces"),
    ]
    if len(record.get("members_ml", [])) > 1:
        cards.append((str(len(record["members_ml"])), "candidates"))
    cards.append((f"{record['seconds']['total']:.0f} s", "to design it"))
    if checks is not None:
        judged = [check for check in checks["checks"] if check.get("passed") is not None]
        good = sum(bool(check["passed"]) for check in judged)
        rest = "" if good == len(judged) else ": look at the others below"
        verdict = f"{good} of {len(judged)} checks passed{rest}"
        light = _light(bool(checks.get("passed")), verdict)
    else:
        light = _light(None, "not checked: there is no checks.json beside this report")
    facts = {
        "File": _code(name),
        "Its sha256": _code(record["input"]["sha256"]),
        "Date": escape(str(record["date"])),
        "Made by": f"pcdiff {escape(str(record['pcdiff']))}",
        "Weights": "<br>".join(f"{_code(file)} {_code(digest[:16])}" for file, digest in record["weights"].items()),
    }
    return (
        f'<header><h1>Cranial implant</h1><p class="lead">for {escape(name)}</p>'
        f'<div class="verdict">{light}</div></header>'
        f'<div class="cards">{"".join(_card(*card) for card in cards)}</div>'
        f"<section>{_list(facts)}</section>"
    )


def _pictures(scene: Scene, skull: Volume, implant: Volume, preview: np.ndarray) -> str:
    whole = picture_html(preview, "the defect, the implant in it, and the implant alone", "whole")
    drawn = [picture_html(picture, caption) for caption, picture in views(scene)]
    cut = [picture_html(picture, caption) for caption, picture in sections(skull, implant)]
    return f'{whole}<div class="pictures">{"".join(drawn)}</div><div class="pictures">{"".join(cut)}</div>'


def _checks(found: dict[str, Any] | None) -> str:
    if found is None:
        return "<p>There is no checks.json in this folder. <code>pcdiff check</code> measures how the implant fits.</p>"
    parts = []
    for check in found["checks"]:
        parts.append(
            f'<div class="check"><h3>{escape(str(check["title"]))}</h3>{_light(check.get("passed"))}'
            f"<p>{escape(str(check.get('words', '')))}</p>{_figures(check.get('figures', []))}</div>"
        )
    direction = found.get("insertion_direction")
    if direction is not None:
        parts.append(f'<p class="lead">It goes in against {_way(direction)} (out of the head, LPS).</p>')
    return "".join(parts)


def _figures(figures: Sequence[dict[str, Any]]) -> str:
    rows = []
    for figure in figures:
        unit = str(figure.get("unit") or "")
        limit = figure.get("limit")
        rule = "" if limit is None else f"{figure.get('rule') or ''} {_number(limit)} {unit}"
        passed = figure.get("passed")
        light = "" if passed is None else _light(bool(passed), "" if passed else "no")
        rows.append(
            [escape(str(figure["name"])), f"{_number(figure.get('value'))} {escape(unit)}", escape(rule.strip()), light]
        )
    return _table(["", "measured", "asked for", ""], rows, numbers=(1,)) if rows else ""


def _candidates(folder: Path, record: dict[str, Any], scene: Scene) -> str:
    volumes = record.get("members_ml", [])
    if len(volumes) < 2:
        return ""
    best = record.get("recommended")
    found = [read_checks(folder / "candidates" / f"checks_{k}.json") for k in range(1, len(volumes) + 1)]
    titles = {c["name"]: str(c["title"]) for checks in found if checks for c in checks["checks"]}
    rows, classes = [], []
    for k, (volume, checks) in enumerate(zip(volumes, found, strict=True), 1):
        by_name = {c["name"]: c for c in checks["checks"]} if checks else {}
        lights = [_light(by_name[name].get("passed")) if name in by_name else "" for name in titles]
        mark = " <b>recommended</b>" if k == best else ""
        rows.append([f"{k}{mark}", f"{volume:.1f} ml", *lights])
        classes.append("best" if k == best else "")
    table = _table(["candidate", "volume", *(escape(t) for t in titles.values())], rows, classes, numbers=(1,))
    skull, pictures = scene.surfaces[0].shape, []
    for surface in scene.surfaces:
        if surface.name.startswith("candidate "):
            drawn = render([skull, surface.shape], slanted(facing(skull, surface.shape)), THUMBNAIL_MM)
            recommended = ", recommended" if surface.name == f"candidate {best}" else ""
            pictures.append(picture_html(drawn, surface.name + recommended))
    few = len(volumes) <= SHOWN_CANDIDATES
    more = "" if few else f"<p>The first {SHOWN_CANDIDATES} of {len(volumes)} are drawn.</p>"
    why = record.get("recommended_because")
    why = f"<p>Recommended: {escape(str(why))}.</p>" if why else ""
    return f'{why}{table}<div class="pictures small">{"".join(pictures)}</div>{more}'


def _input(record: dict[str, Any]) -> str:
    shape = " x ".join(str(n) for n in record["input"]["shape"])
    facts = {"Grid": f"{shape} voxels", "Spacing": f"{_numbers(record['input']['spacing_mm'])} mm"}
    check = record.get("input_check") or {}
    if check:
        kinds = {"ct": "CT in Hounsfield units", "mask": "mask of the bone"}
        facts = {"Kind": escape(kinds.get(str(check.get("kind")), str(check.get("kind")))), **facts}
    told = {
        "format": ("Format", ""),
        "field_of_view_mm": ("Field of view", "mm"),
        "slice_thickness_mm": ("Slice thickness", "mm"),
        "tilt_deg": ("Gantry tilt", "degrees"),
        "threshold_hu": ("Threshold of bone", "HU"),
        "noise_hu": ("Noise in soft tissue", "HU"),
        "streaks_hu": ("Streaks of metal", "HU"),
        "metal_ml": ("Metal", "ml"),
        "removed_ml": ("Removed: table, head-holder, loose pieces", "ml"),
    }
    for key, (title, unit) in told.items():
        if check.get(key) is not None:
            value = check[key]
            text = _numbers(value) if isinstance(value, list | tuple) else _number(value)
            facts[title] = f"{escape(text)} {unit}".strip()
    for n, defect in enumerate(check.get("defects") or [], 1):
        where = defect.get("place") or defect.get("side")
        facts[f"Defect {defect.get('label', n)}"] = escape(f"{_number(defect.get('area_cm2'))} cm\u00b2, {where}")
    warnings = "".join(f"<li>{escape(str(warning))}</li>" for warning in check.get("warnings") or [])
    return _list(facts) + (f'<div class="warnings"><b>Warnings</b><ul>{warnings}</ul></div>' if warnings else "")


def _making(record: dict[str, Any]) -> str:
    settings = "".join(f"{_code(key)} {escape(_setting(value))}<br>" for key, value in record["settings"].items())
    facts = {
        "Settings": settings,
        "Peak memory": f"{record['peak_memory_mb']} MB",
        "Distance of the bone to the shape prior": f"{_number(record['prior_residual_mm'])} mm",
        "STL": f"{record['stl']['triangles']:,} triangles, {_number(record['stl']['volume_ml'])} ml, "
        f"DSC {_number(record['stl']['dsc'])} with the volume",
        "Machine": escape(", ".join(f"{key} {value}" for key, value in record["machine"].items())),
    }
    seconds = {key: value for key, value in record["seconds"].items() if key != "total"}
    longest = max([*seconds.values(), 1e-9])
    rows = [
        [
            escape(STAGES.get(key, key)),
            f"{value:.1f} s",
            f'<span class="bar" style="width:{140 * value / longest:.0f}px"></span>',
        ]
        for key, value in seconds.items()
    ]
    return _list(facts) + "<br>" + _table(["stage", "seconds", ""], rows, numbers=(1,))


def _section(title: str, content: str, kind: str = "") -> str:
    return f'<section class="{kind}"><h2>{escape(title)}</h2>{content}</section>' if content else ""


def _card(value: str, name: str) -> str:
    return f'<div class="card"><b>{escape(value)}</b><span>{escape(name)}</span></div>'


def _light(passed: bool | None, words: str | None = None) -> str:
    kind, usual = LIGHTS[passed]
    return f'<span class="light {kind}">{escape(usual if words is None else words)}</span>'


def _list(facts: dict[str, str]) -> str:
    """Names to HTML."""
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{value}</dd>' for name, value in facts.items())}</dl>"


def _table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], classes: Sequence[str] = (), numbers: Sequence[int] = ()
) -> str:
    """HTML cells in, a table out."""
    kind = ['class="number"' if n in numbers else "" for n in range(len(heads))]
    head = "".join(f"<th {kind[n]}>{text}</th>" for n, text in enumerate(heads))
    body = "".join(
        f'<tr class="{classes[r] if classes else ""}">'
        + "".join(f"<td {kind[n]}>{cell}</td>" for n, cell in enumerate(row))
        + "</tr>"
        for r, row in enumerate(rows)
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"


def _number(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def _setting(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_setting(each)}" for key, each in value.items())
    return _number(value)


def _numbers(values: Iterable[float]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)


def _way(direction: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.2f}" for value in direction) + ")"
