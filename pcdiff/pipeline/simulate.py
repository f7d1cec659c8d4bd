"""A virtual craniotomy as files: the defective skull, the true implant and their record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pcdiff import NOTICE, __version__
from pcdiff.imaging.input_check import read_skull
from pcdiff.imaging.scan import input_digest
from pcdiff.imaging.volumes import write_volume
from pcdiff.pipeline.case_folder import case_folder
from pcdiff.pipeline.names import shown_name
from pcdiff.pipeline.record import SKULL, pieces_ml, refuse_other_input, write_record


def write_simulation(
    source: Path,
    folder: Path,
    kind: str,
    defects: int,
    seed: int,
    overwrite: bool = False,
    *,
    threshold: int | None = None,
    series: str | None = None,
    acquisition: int | None = None,
    label: str | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Simulates a craniotomy of a healthy skull; writes defective_skull.nrrd, implant.nrrd and run.json.

    source, threshold, series, acquisition, label: a CT or a mask, see `input_check.read_skull`. on_warning: gets each
    warning of the input check. Returns the record. Raises InputError for a skull that cannot be read, as
    `simulate_craniotomy`, and as `case_folder`.
    """
    from pcdiff.data.craniotomy import simulate_craniotomy

    with case_folder(folder, overwrite, source) as part:
        digest = input_digest(source)
        refuse_other_input(folder, digest, overwrite)
        skull, check = read_skull(source, threshold, series, label, acquisition)
        if on_warning is not None:
            for warning in check.warnings:
                on_warning(warning)
        defective_skull, implant = simulate_craniotomy(skull, kind, np.random.default_rng(seed), defects)
        write_volume(defective_skull, part / SKULL)
        write_volume(implant, part / "implant.nrrd")
        record = {
            "pcdiff": __version__,
            "notice": NOTICE,
            "input": {"path": shown_name(source), "sha256": digest},
            "settings": {
                **{"kind": kind, "defects": defects, "seed": seed},
                **{"threshold": threshold, "series": series, "acquisition": acquisition, "label": label},
            },
            "implant_ml": round(implant.ml, 3),
            "pieces_ml": pieces_ml(implant),
        }
        write_record(part, record)
    return record
