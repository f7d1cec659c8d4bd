"""A virtual craniotomy as files: the defective skull, the true implant and their record."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pcdiff import NOTICE, __version__
from pcdiff.imaging.scan import input_digest
from pcdiff.imaging.volumes import read_volume, write_volume
from pcdiff.pipeline.names import shown_name
from pcdiff.pipeline.record import SKULL, case_folder, pieces_ml, refuse_other_input, write_record


def write_simulation(
    source: Path, folder: Path, kind: str, defects: int, seed: int, overwrite: bool = False, label: str | None = None
) -> dict:
    """Simulates a craniotomy of a healthy skull; writes defective_skull.nrrd, implant.nrrd and run.json.

    Returns the record. Raises InputError for a skull that cannot be read, as `simulate_craniotomy`, and as
    `case_folder`.
    """
    from pcdiff.data.craniotomy import simulate_craniotomy

    with case_folder(folder, overwrite, source) as part:
        skull, digest = read_volume(source, label), input_digest(source)
        refuse_other_input(folder, digest, overwrite)
        defective_skull, implant = simulate_craniotomy(skull, kind, np.random.default_rng(seed), defects)
        write_volume(defective_skull, part / SKULL)
        write_volume(implant, part / "implant.nrrd")
        record = {
            "pcdiff": __version__,
            "notice": NOTICE,
            "input": {"path": shown_name(source), "sha256": digest},
            "settings": {"kind": kind, "defects": defects, "seed": seed, "label": label},
            "implant_ml": round(implant.ml, 3),
            "pieces_ml": pieces_ml(implant),
        }
        write_record(part, record)
    return record
