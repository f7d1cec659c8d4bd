"""The numbers that were chosen together with a statistical shape model; they are stored in its file."""

from __future__ import annotations

from pydantic import Field, field_validator

from pcdiff.config import StrictConfig
from pcdiff.prior.direction_map import MAX_ANGLE_DEG, PIXEL, RADIUS, SIZE, TILT_DEG
from pcdiff.prior.gaussian_process import Kernel

MIN_RING_SPACING_MM = 0.5  # below it the regression of a large defect would take hours


class MapLayout(StrictConfig):
    """The map that a model's arrays are laid out on. A file with another layout is refused."""

    size: int = Field(default=SIZE, description="pixels along a side")
    pixel_mm: float = Field(default=PIXEL, description="arc per pixel at the reference radius")
    radius_mm: float = Field(default=RADIUS, description="reference radius")
    tilt_deg: float = Field(default=TILT_DEG, description="how far the pole leans back")
    max_angle_deg: float = Field(default=MAX_ANGLE_DEG, description="from the pole to the map's edge")


class PopulationSettings(StrictConfig):
    """How the tables of healthy heads become a mean and modes."""

    modes: int = Field(default=40, gt=0, description="modes stored at most")
    gap_modes: int = Field(default=12, gt=0, description="modes that fill the gaps of a head during EM")
    initial_thickness_mm: float = Field(default=7.0, description="thickness at which the inner table is first sought")
    max_outer_deviation_mm: float = Field(default=10.0, description="from the mean; readings farther off are dropped")
    max_thickness_deviation_mm: float = Field(default=7.0, description="the same for the thickness")
    thickness_smoothing_px: float = Field(default=1.0, description="Gaussian over the map; single rays are noisy")


class PoseSettings(StrictConfig):
    """Registration of the outer table to the mean."""

    vault_mm: float = Field(default=75.0, description="from the top of the head to the initial centre")
    min_points: int = Field(default=500, description="points of the vault that a registration needs")
    trim_percentile: float = Field(default=85.0, description="points with larger distances get no weight")
    cauchy_mm: float = Field(default=2.0, description="scale of the robust weights")
    min_std_mm: float = Field(default=1.5, description="lower bound of the standard deviation in the weights")
    scale_ridge: float = Field(default=0.002, description="pull of the three scales to 1")
    warn_residual_mm: float = Field(default=1.2, description="median distance, above that of every training head")
    max_residual_mm: float = Field(default=2.0, description="median distance above which a skull is refused")


class TableSettings(StrictConfig):
    """Reading of both tables of a defective skull along the rays."""

    modes: int = Field(default=20, description="modes of the robust fit that predicts both tables")
    cauchy_mm: float = Field(default=1.5, description="scale of its robust weights")
    ray_weight: float = Field(default=0.1, description="weight of a ray, below 1 because neighbours are correlated")
    min_thickness_mm: float = Field(default=1.5, description="lower bound of the predicted thickness")
    inner_reach_mm: float = Field(default=5.0, description="search range around the predicted inner table")
    max_deviation_mm: float = Field(default=5.0, description="from the prediction; readings farther off are dropped")
    absent_slack_mm: float = Field(default=3.0, description="beyond the predicted tables bone still counts as present")


class DefectSettings(StrictConfig):
    """Which regions without bone are defects."""

    min_presence: float = Field(default=0.9, description="share of healthy heads with bone here")
    min_area_cm2: float = Field(default=3.0, description="smaller ones are burr holes, foramina or sutures")
    opening_mm: float = Field(default=4.0, description="gaps narrower than twice this are no craniotomy")
    min_bone_border: float = Field(default=0.3, description="share of the border that is bone; else the scan ends here")
    min_strip_mm: float = Field(default=12.0, description="height at the edge of the field of view; less: missing face")
    min_strip_ratio: float = Field(default=1 / 12, description="the same as a share of the length along that edge")


class CompletionSettings(StrictConfig):
    """Gaussian-process regression of both tables over a defect."""

    outer: Kernel = Kernel(amplitudes=(2.5, 0.5), lengths=(70.0, 20.0), noise=0.15, learned=0.15)
    thickness: Kernel = Kernel(amplitudes=(1.2, 0.4), lengths=(80.0, 15.0), noise=0.3, learned=0.3)
    band_mm: float = Field(default=12.0, description="bone around a defect that the completed surface covers")
    min_rays: int = Field(default=512, description="rays completed at least, also for a small defect")
    border_mm: float = Field(
        default=1.6, description="from a defect; nearer rays are often cut in part and are not used"
    )
    initial_border_mm: float = Field(default=9.0, description="border_mm before the bevel of the cut is measured")
    bevel_loss_mm: float = Field(default=1.2, description="bone missing at either table for a ray to count as cut")
    rings: tuple[tuple[float, float, float], ...] = Field(
        default=((0.0, 8.0, 1.5), (8.0, 10.0, 3.0), (10.0, 25.0, 6.0), (25.0, 60.0, 12.0), (60.0, 400.0, 24.0)),
        description="spacing of the observed rays by distance from the defect: from, to, spacing in mm",
    )

    @field_validator("rings")
    @classmethod
    def _outward(cls, rings: tuple[tuple[float, float, float], ...]) -> tuple[tuple[float, float, float], ...]:
        if not all(0 <= first < last and spacing >= MIN_RING_SPACING_MM for first, last, spacing in rings):
            raise ValueError(f"rings lead outward, with rays {MIN_RING_SPACING_MM:g} mm apart at least, got {rings}")
        return rings

    @property
    def kernels(self) -> tuple[Kernel, Kernel]:
        """Of outer table and thickness."""
        return self.outer, self.thickness


class PriorSettings(StrictConfig):
    """All of them, as `ShapePrior.settings`."""

    layout: MapLayout = MapLayout()
    population: PopulationSettings = PopulationSettings()
    pose: PoseSettings = PoseSettings()
    tables: TableSettings = TableSettings()
    defects: DefectSettings = DefectSettings()
    completion: CompletionSettings = CompletionSettings()


SETTINGS = PriorSettings()  # of a model that is built from heads
