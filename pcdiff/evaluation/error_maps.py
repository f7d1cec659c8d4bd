"""Pictures of the best, median and worst implants, coloured by their distance to the true one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from pcdiff.data.cases import Case
from pcdiff.evaluation.results import Results, Row, _kept
from pcdiff.imaging.volumes import read_volume
from pcdiff.report.error_picture import error_picture
from pcdiff.report.render import write_png


def write_error_maps(out: Path, results: Results, cases: Sequence[Case], progress: bool = True) -> None:
    """`error_maps/<method>-<best, median or worst>-<case>.png` for each method and kind, by DSC, of what was designed.

    See `report.error_picture`; the maps of an earlier run are removed.
    """
    folder = out / "error_maps"
    folder.mkdir(exist_ok=True)
    for stale in folder.glob("*.png"):
        stale.unlink()
    by_name = {case.name: case for case in cases}
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in results.rows:
        if row.implant:
            groups.setdefault((row.method, row.kind), []).append(row)
    drawn: list[tuple[str, Row]] = []
    for rows in groups.values():
        rows.sort(key=lambda row: -row.dsc)
        places = {0: "best", len(rows) // 2: "median", len(rows) - 1: "worst"}
        drawn += [(f"{name} of {len(rows)}", rows[place]) for place, name in places.items()]
    for name, row in tqdm(drawn, unit="map", disable=not progress, desc="error maps"):
        truth = by_name[row.case].load()
        implant = read_volume(_kept(out, row.method, row.case))
        title = f"{row.method}, {row.case}, {name}: DSC {row.dsc:.3f}, HD95 {row.hd95:.2f} mm"
        picture = error_picture(truth.defective_skull, implant, truth.implant, title)
        write_png(picture, folder / f"{row.method}-{name.split()[0]}-{row.case.replace('/', '-')}.png")
