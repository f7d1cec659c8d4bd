"""The built-in case: a synthetic head from the shape model, a defect cut into it, and its implant, scored."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pcdiff.data.craniotomy import simulate_craniotomy
from pcdiff.files import sha256
from pcdiff.geometry.metrics import scores
from pcdiff.imaging.volumes import read_volume, write_volume
from pcdiff.pipeline.case import write_case
from pcdiff.pipeline.case_folder import case_folder
from pcdiff.pipeline.record import SKULL, refuse_other_input, write_record
from pcdiff.pipeline.settings import Settings
from pcdiff.prior.model import ShapePrior

KIND = "skullfix"


def demo(folder: Path, settings: Settings, overwrite: bool = False) -> dict[str, Any]:
    """Designs the implant of a synthetic head; returns the record with `scores` against the true implant.

    `settings.seed` decides the head and its defect. Writes the files of `case.design_case`, and skull.nrrd (the
    complete head), defective_skull.nrrd and implant_true.nrrd. Errors as `design_case`.
    """
    method = settings.load()
    with case_folder(folder, overwrite) as part:
        rng = np.random.default_rng(settings.seed)
        skull = ShapePrior.shipped().draw(rng)
        defective_skull, truth = simulate_craniotomy(skull, KIND, rng)
        for name, volume in (("skull", skull), ("defective_skull", defective_skull), ("implant_true", truth)):
            write_volume(volume, part / f"{name}.nrrd")
        refuse_other_input(folder, sha256(part / SKULL), overwrite)
        record = write_case(part, part / SKULL, method, settings)
        implant = read_volume(part / "implant.nrrd")
        result = asdict(scores(implant, truth, defective_skull))
        record["scores"] = {name: round(float(value), 4) for name, value in result.items()}
        record["true_ml"] = round(truth.ml, 3)
        write_record(part, record)
    return record
