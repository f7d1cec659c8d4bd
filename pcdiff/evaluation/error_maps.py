"""Error maps: pictures of the best, the median and the worst implant, coloured by the distance to the true one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from pcdiff.data.cases import Case
from pcdiff.evaluation.plan import implant_path
from pcdiff.evaluation.rows import Row
from pcdiff.imaging.volumes import read_volume
from pcdiff.report.error_picture import error_picture
from pcdiff.report.render import write_png


def write_error_maps(out: Path, rows: Sequence[Row], cases: Sequence[Case], progress: bool = True) -> None:
    """Writes `error_maps/<method>-<best, median or worst>-<case>.png` for each method and kind, by DSC.

    Rows without an implant are left out. The maps of an earlier evaluation are removed.
    """
    folder = out / "error_maps"
    folder.mkdir(exist_ok=True)
    for stale in folder.glob("*.png"):
        stale.unlink()
    by_name = {case.name: case for case in cases}
    for rank, count, row in tqdm(_choose(rows), unit="map", disable=not progress, desc="error maps"):
        truth = by_name[row.case].load()
        implant = read_volume(implant_path(out, row.method, row.case))
        title = f"{row.method}, {row.case}, {rank} of {count}: DSC {row.dsc:.3f}, HD95 {row.hd95:.2f} mm"
        picture = error_picture(truth.defective_skull, implant, truth.implant, title)
        write_png(picture, folder / f"{row.method}-{rank}-{row.case.replace('/', '-')}.png")


def _choose(rows: Sequence[Row]) -> list[tuple[str, int, Row]]:
    """(best, median or worst; number of implants; row) for each method and kind."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.implant:
            groups.setdefault((row.method, row.kind), []).append(row)
    chosen = []
    for group in groups.values():
        group.sort(key=lambda row: -row.dsc)
        ranks = {0: "best", len(group) // 2: "median", len(group) - 1: "worst"}
        chosen += [(rank, len(group), group[place]) for place, rank in ranks.items()]
    return chosen
