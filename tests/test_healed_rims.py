"""Implants at healed rims, rounded, resorbed and with spurs: one body without a blade, that goes in and closes."""

from __future__ import annotations

import numpy as np
import pytest
from test_checks import Shell

from pcdiff.checks import check_implant
from pcdiff.data.cases import LoadedCase
from pcdiff.data.healing import healed
from pcdiff.pipeline.fit_options import FitOptions
from pcdiff.pipeline.fitting import apply_fit_options
from pcdiff.pipeline.printing import printed

CENTRE = np.zeros(3)


@pytest.mark.parametrize(("spacing", "seed"), [(0.8, 0), (0.8, 1), (1.5, 2), (1.5, 3)])
def test_an_implant_at_a_healed_rim_can_be_printed_and_inserted(spacing: float, seed: int) -> None:
    shell = Shell((spacing, spacing, spacing))
    case = LoadedCase("shell", shell.skull, shell.empty.with_mask(shell.wall & shell.defect))
    case = healed(case, np.random.default_rng(seed))
    fitted = apply_fit_options(case.implant, case.defective_skull, CENTRE, FitOptions(make_insertable=True))
    made = printed(fitted.implant, case.defective_skull, CENTRE, 1)
    implant, mesh = made.volume, made.mesh
    report = check_implant(case.defective_skull, implant, mesh, shell.vault)
    # spurs weigh more in a defect of 8 ml than in a usual one: here undercuts are removed whatever they cost
    assert not {"complete", "implantable", "thickness", "clearance", "printable"}.intersection(report.failed)
    assert implant.ml > 0.9 * case.implant.ml
