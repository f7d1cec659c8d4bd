"""The whole flow on one screen: a defective skull in, an implant that fits out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from pcdiff.checks.criteria import Criteria
from pcdiff.environment import one_blas_thread, side_by_side
from pcdiff.errors import InputError, MethodError
from pcdiff.geometry.grid import bounding_box, box_slices
from pcdiff.geometry.mesh import Mesh
from pcdiff.geometry.volume import Volume
from pcdiff.methods.base import Candidate, ChecksSkull, Method, PriorBasedMethod, Proposal
from pcdiff.methods.candidates import OrientedPoints, combine
from pcdiff.pipeline.engraving import Engraving
from pcdiff.pipeline.fit_options import USUAL, FitOptions
from pcdiff.pipeline.fitting import apply_fit_options
from pcdiff.pipeline.printing import Printed, printed
from pcdiff.pipeline.stages import Stopwatch
from pcdiff.prior.defects import DefectChoice
from pcdiff.prior.fit import PriorFit
from pcdiff.prior.fit import fit as fit_prior
from pcdiff.prior.model import ShapePrior
from pcdiff.prior.orientation import Axes

MIN_THICKNESS_MM = Criteria().min_thickness_mm


@dataclass(frozen=True)
class Design:
    """An implant and how it came about.

    implant: on the skull's own grid, disjoint from the skull. mesh: its surface, mm, LPS. fit: the statistical shape
    model fitted to the skull; it holds the defects. members: every candidate as an implant of its own, None for one
    without a voxel (empty unless asked for, and for a single candidate). trimmed_ml, drain_holes: see
    `fitting.FittedImplant`. engraved: what was cut into the mesh, and the mesh only.
    """

    implant: Volume
    mesh: Mesh
    fit: PriorFit
    proposal: Proposal
    members: list[Printed | None]
    trimmed_ml: float = 0.0
    drain_holes: int = 0
    engraved: tuple[Engraving, ...] = ()

    @property
    def uncertainty(self) -> np.ndarray:
        """(I, J, K) float32: standard deviation of each voxel over the members; 0.5 where half of them hold it."""
        count = np.zeros_like(self.implant.mask, np.uint16)
        for member in self.members:
            if member is not None:
                count += member.volume.mask
        box = box_slices(*bounding_box(count))
        share = count[box] / np.float32(len(self.members))
        values = np.zeros(count.shape, np.float32, order="F")  # as files are written
        values[box] = np.sqrt(share * (1 - share))
        return values


@one_blas_thread()
def design(
    skull: Volume,
    method: Method | PriorBasedMethod,
    *,
    ensemble: int = 1,
    seed: int = 0,
    backend: str = "spectral",
    device: str = "cpu",
    keep_members: bool = False,
    options: FitOptions = USUAL,
    min_thickness_mm: float = MIN_THICKNESS_MM,
    axes: Axes = "stated",
    defects: DefectChoice = "clear",
    watch: Stopwatch | None = None,
) -> Design:
    """Designs the implant that closes the defects of a skull, and makes it fit as the options say.

    The shape model that locates the defects is the method's own, or the shipped one for a method without. backend: of
    the reconstruction of oriented points. keep_members: also every candidate as an implant. min_thickness_mm: the wall
    that an engraving leaves. axes: what is known of the patient axes, see `prior.fit`. defects: those to close, as
    there. watch: times the stages.

    Raises InputError when the skull has no defect, is no head or no upright one, or has voxels too coarse for the
    options, and for an ensemble or a seed out of range; MethodError when the method breaks its contract.
    """
    watch = watch or Stopwatch()
    if ensemble < 1 or seed < 0:
        raise InputError(f"expected an ensemble of 1 or more and a seed of 0 or more, got {ensemble} and {seed}")
    if not callable(method):
        raise MethodError(
            f"expected a method that can be called, got {method!r}; load one by its name with load_method"
        )
    options.check_resolution(skull.spacing)  # before the work, not after it
    if isinstance(method, ChecksSkull):
        method.check(skull)
    with watch("fit"):
        prior = method.prior if isinstance(method, PriorBasedMethod) else ShapePrior.shipped()
        fit = fit_prior(prior, skull, axes, defects)
    with watch("points"):
        if isinstance(method, PriorBasedMethod):
            proposal = method(skull, fit, ensemble=ensemble, seed=seed, device=device)
        else:
            proposal = method(skull, ensemble=ensemble, seed=seed, device=device)
        candidates = _candidates(proposal, fit)
    with watch("reconstruct"):
        implant, volumes = combine(candidates, skull, backend, keep_members and len(candidates) > 1)
        if not implant.mask.any():
            raise InputError(
                "no implant: the method proposes no bone that these voxels can show; is the skull really defective?"
            )
        centre = fit.pose.shift
        final = apply_fit_options(implant, skull, centre, options)
    with watch("mesh"):
        text = options.parse_engraving()
        as_asked = replace(options, make_insertable=bool(options.make_insertable))  # a small undercut needs no search

        def recommended() -> Printed:
            made = printed(final.implant, skull, centre, fit.defects)
            return made if text is None else made.with_text(text, skull, centre, min_thickness_mm)

        def candidate(volume: Volume) -> Printed | None:
            if not volume.mask.any():
                return None
            fitted = apply_fit_options(volume, skull, centre, as_asked).implant
            member = printed(fitted, skull, centre, fit.defects)
            if text is not None:
                with suppress(InputError):  # no room: it stays without a text
                    member = member.with_text(text, skull, centre, min_thickness_mm)
            return member

        tasks: list[Callable[[], Printed | None]] = [recommended, *(partial(candidate, volume) for volume in volumes)]
        made, *members = side_by_side(lambda task: task(), tasks)
    assert made is not None
    return Design(made.volume, made.mesh, fit, proposal, members, final.trimmed_ml, final.drain_holes, made.engraved)


def _candidates(proposal: object, fit: PriorFit) -> list[Candidate]:
    """The candidates of a proposal; oriented points without labels get those of the defects they lie in.

    Raises MethodError for anything but a proposal of candidates.
    """
    if not isinstance(proposal, Proposal):
        raise MethodError(f"expected the method to return a Proposal, got {type(proposal).__name__}")
    candidates: list[Candidate] = []
    for candidate in proposal.candidates:
        if not hasattr(candidate, "to_volume"):
            raise MethodError(f"expected candidates with to_volume(skull), got {type(candidate).__name__}")
        if isinstance(candidate, OrientedPoints) and candidate.points.defect is None:
            cloud = candidate.points
            candidate = OrientedPoints(replace(cloud, defect=fit.defect_at(cloud.points)))
        candidates.append(candidate)
    return candidates
