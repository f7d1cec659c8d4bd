"""Heads that never were, made once for all tests: drawn from the shipped prior, or ellipsoids along rays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from stub_method import Stub

from pcdiff.cli import app as cli
from pcdiff.data.craniotomy import simulate_craniotomy
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import write_volume
from pcdiff.prior.direction_map import MAP, PIXEL
from pcdiff.prior.fit import PriorFit, fit
from pcdiff.prior.folds import Population
from pcdiff.prior.model import ShapePrior

HEADS = 6


@pytest.fixture(scope="module", autouse=True)
def coarse_pictures(request: pytest.FixtureRequest) -> Iterator[None]:
    """One sample per pixel: drawing is most of the time of a report. Only the renderer's own tests see all samples."""
    with pytest.MonkeyPatch.context() as patch:
        if request.module.__name__ != "test_render":
            patch.setattr("pcdiff.report.render.SUPERSAMPLING", 1)
        yield


@pytest.fixture(scope="session")
def prior() -> ShapePrior:
    """The prior that the package ships."""
    return ShapePrior.shipped()


@pytest.fixture(scope="session")
def healthy(prior: ShapePrior) -> Volume:
    """A healthy vault at 1.6 mm."""
    return prior.draw(np.random.default_rng(0), spacing=1.6)


@pytest.fixture(scope="session")
def case(healthy: Volume) -> tuple[Volume, Volume]:
    """(defective skull, true implant), one defect of 25 ml."""
    return simulate_craniotomy(healthy, "random_1", np.random.default_rng(1))


@pytest.fixture(scope="session")
def fitted(prior: ShapePrior, case: tuple[Volume, Volume]) -> PriorFit:
    """The prior fitted to the defective skull of `case`."""
    return fit(prior, case[0])


@pytest.fixture(scope="session")
def depth(fitted: PriorFit) -> np.ndarray:
    """(R,) mm from each ray inside the defect to the nearest bone along the map, 0 on bone."""
    return ndimage.distance_transform_edt(MAP.to_image(fitted.defect > 0, False))[MAP.inside] * PIXEL


@pytest.fixture(scope="session")
def population() -> Population:
    """Six heads that never were."""
    return ellipsoids(HEADS)


@pytest.fixture(scope="session")
def larger_population() -> Population:
    """Twelve: more than the modes that fill gaps."""
    return ellipsoids(2 * HEADS)


@pytest.fixture
def stub(fitted: PriorFit, monkeypatch: pytest.MonkeyPatch) -> Stub:
    """What every command takes as its method."""
    method = Stub(fitted)
    monkeypatch.setattr("pcdiff.methods.registry.load_method", lambda name, weights=None: method)
    monkeypatch.setattr("pcdiff.pipeline.flow.fit_prior", lambda prior, skull, *_, **__: fitted)
    return method


@pytest.fixture
def skull(tmp_path: Path, case: tuple[Volume, Volume]) -> Path:
    """The file of the defective skull of `case`."""
    path = tmp_path / "in" / "head.nii.gz"
    path.parent.mkdir()
    write_volume(case[0], path)
    return path


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Arguments -> exit code, stdout, stderr, whatever wrote to them."""
    monkeypatch.delenv("PCDIFF_DEBUG", raising=False)

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            cli.main([str(argument) for argument in arguments])
        said = capfd.readouterr()
        return int(stopped.value.code or 0), said.out, said.err

    return run


def ellipsoids(heads: int) -> Population:
    """Ellipsoids with smooth, asymmetric bumps and a wall of 4 to 8 mm, along the rays of the map."""
    rng = np.random.default_rng(5)
    x, y, z = directions = MAP.directions.T
    terms = np.stack([x, y, z, x * y, x * z, y * z, x**2 - y**2, 3 * z**2 - 1])
    outer, thickness = [], []
    for _ in range(heads):
        axes = np.array([72.0, 88.0, 80.0]) * rng.uniform(0.95, 1.05, 3)
        radius = 1 / np.linalg.norm(directions / axes[:, None], axis=0)
        outer.append(radius + rng.normal(0, 0.8, len(terms)) @ terms)
        thickness.append(6 + rng.normal(0, 0.4, len(terms)) @ terms)
    names = tuple(f"{number:03d}" for number in range(heads))
    return Population(
        names,
        np.array(outer, np.float32),
        np.array(thickness, np.float32),
        np.ones((heads, len(MAP.directions)), np.float32),
    )
