"""The options that decide a result, the same for each command that designs: they become its `Settings`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

from pcdiff.cli import options
from pcdiff.cli.console import available_device
from pcdiff.errors import InputError

if TYPE_CHECKING:
    from pcdiff.pipeline.settings import Settings
else:
    Settings = Any  # the class loads numpy, which no help needs


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """The command with one option for each parameter of `_settings` in place of its parameter `settings`."""
    own, shared = (inspect.signature(each, eval_str=True).parameters for each in (command, _settings))
    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, of in own.items()
        for parameter in (shared.values() if name == "settings" else [of])
    ]

    @wraps(command)
    def run(**given: Any) -> None:
        settings = _settings(**{name: given.pop(name) for name in shared})
        command(settings=settings, **given)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def check_single(settings: Settings, scans: int) -> None:
    """Raises InputError for options that are for one scan, if there are more."""
    alone = {
        "--region": settings.region,
        "--edited": settings.method == "edited" or None,
        "--case-id": settings.case_id,
        "--engrave": settings.fitting.engrave,
    }
    for option, given in alone.items():
        if given is not None and scans > 1:
            raise InputError(f"{option} is for one scan, got {scans}; give one")


def _settings(
    method: options.Method = None,
    weights: options.Weights = None,
    ensemble: options.Ensemble = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    backend: options.Backend = "spectral",
    threshold: options.Threshold = None,
    series: options.Series = None,
    label: options.Label = None,
    acquisition: options.Acquisition = None,
    ignore_metal: options.IgnoreMetal = False,
    assume_orientation: options.AssumeOrientation = False,
    defect: options.Defects = None,
    region: options.Region = None,
    edited: options.Edited = None,
    clearance: options.Clearance = 0.0,
    thickness: options.Thickness = "bone",
    smooth: options.Smooth = 0.0,
    drain_holes: options.DrainHoles = None,
    make_insertable: options.MakeInsertable = None,
    engrave: options.Engrave = None,
    fixation: options.Fixation = 0,
    criteria: options.Criteria = None,
    mesh: options.MeshKinds = "stl",
    mesh_space: options.MeshSpace = "lps",
    keep_points: options.KeepPoints = False,
    report: options.WithReport = True,
    case_id: options.CaseId = None,
) -> Settings:
    """The settings that the options choose. Raises InputError for an unknown method, and for missing weights."""
    from pcdiff.checks.criteria import load_criteria
    from pcdiff.methods.registry import default_method
    from pcdiff.pipeline.fitting import FitOptions
    from pcdiff.pipeline.names import as_text
    from pcdiff.pipeline.settings import DEFAULT_ENSEMBLE, Settings

    if edited is not None and (method or weights or ensemble):
        raise InputError("--edited gives the implant: leave out --method, --weights and --ensemble")
    candidates = ensemble or DEFAULT_ENSEMBLE
    settings = Settings(
        method="edited" if edited else method or default_method(candidates),
        ensemble=candidates,
        seed=seed,
        device=available_device(device),
        backend=backend,
        weights=edited or weights,
        threshold=threshold,
        series=series,
        label=label,
        acquisition=acquisition,
        ignore_metal=ignore_metal,
        assume_orientation=assume_orientation,
        defects=options.chosen_defects(defect, region),
        region=region,
        fitting=FitOptions(clearance, thickness, smooth, drain_holes, make_insertable, engrave),
        criteria=load_criteria(criteria),
        mesh=mesh,
        mesh_space=mesh_space,
        keep_points=keep_points,
        fixation=fixation,
        report=report,
        case_id=None if case_id is None else as_text(case_id),
    )
    settings.record()  # fails once for an unknown method or missing weights, not once for each case
    return settings
