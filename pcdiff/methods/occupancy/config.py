"""Lattice, features and thresholds of the occupancy network; stored with its weights."""

from __future__ import annotations

from pydantic import Field, field_validator

from pcdiff.config import StrictConfig

POINT_FEATURES = (
    *("depth_below_outer", "height_above_inner", "outer_std", "thickness_std", "border_distance", "near_border"),
    *("depth_in_tables", "table_log_odds", "x", "abs_x", "y", "z", "bone_distance", "mirrored_bone_distance"),
)
MAPS = (
    *("bone", "mirrored", "mean", "bone, 2 mm", "mirrored, 2 mm", "bone, 4 mm", "mirrored, 4 mm"),
    *("bone, 7 mm", "mirrored, 7 mm", "mean, 2 mm", "outer", "inner"),
)


class OccupancySettings(StrictConfig):
    """Everything that the network was trained with, and the thresholds that turn its output into a correction."""

    step_mm: float = Field(default=2.0, gt=0, description="spacing of the lattice")
    margin_mm: float = Field(default=22.0, description="lattice around the missing tables, wide enough for an orbit")
    mean_low_mm: tuple[float, float, float] = Field(
        default=(-100.0, -120.0, -110.0), description="model coordinates of the mean head's first voxel"
    )
    mean_shape: tuple[int, int, int] = Field(default=(101, 116, 106), description="voxels of the mean head")

    extension_mm: float = Field(default=4.0, description="the completed tables go on beyond a defect's border")
    slope_mm: float = Field(default=0.5, gt=0, description="depth between the tables per unit of log-odds")
    max_log_odds: float = Field(default=5.0, gt=0, description="limit of the tables' log-odds")
    table_weight: float = Field(default=0.5, description="weight of the tables' log-odds, which are overconfident")

    near_mm: float = Field(default=6.0, description="query points are so near to the completed tables")
    min_mirrored: float = Field(default=0.1, description="or have this occupancy in the mirrored head")
    min_mean: float = Field(default=0.15, description="or have this occupancy in the mean head")

    point_features: tuple[str, ...] = Field(default=POINT_FEATURES, description="single values, in this order")
    table_clip_mm: float = Field(default=10.0, description="limit of depth_below_outer and height_above_inner")
    border_clip_mm: float = Field(default=16.0, description="limit of border_distance")
    bone_clip_mm: float = Field(default=30.0, description="limit of bone_distance")
    mirrored_clip_mm: float = Field(default=16.0, description="limit of mirrored_bone_distance")
    coordinate_scale_mm: float = Field(default=60.0, description="unit of x, y and z")
    patches: tuple[tuple[str, int, int], ...] = Field(
        default=(
            *(("bone", 3, 1), ("mirrored", 3, 1), ("mean", 3, 1)),
            *(("bone, 2 mm", 5, 2), ("mirrored, 2 mm", 5, 2)),
            *(("bone, 4 mm", 5, 4), ("mirrored, 4 mm", 5, 4)),
            *(("bone, 7 mm", 5, 6), ("mirrored, 7 mm", 3, 6)),
            *(("mean, 2 mm", 3, 2), ("outer", 3, 2), ("inner", 3, 2)),
        ),
        description="cubes around a query point: map, points along a side, lattice steps from point to point",
    )
    width: int = Field(
        default=384, gt=1, le=65_536, description="units of the first hidden layer; the second has half of them"
    )
    dropout: float = Field(default=0.2, ge=0, lt=1)

    # A DSC of D is maximised by all points with a probability above D / 2 (Lipton et al. 2014): here 0.38,
    # or log-odds of -0.5, which the offset moves to 0.
    offset: float = Field(default=0.5, description="added to the network's log-odds")
    removal: float = Field(default=-0.5, description="bone between the tables is removed below these log-odds")
    off_surface: float = Field(default=1.0, description="tables' log-odds beyond which a point lies off their surface")
    min_region: int = Field(
        default=40, description="lattice points of a corrected region; the tables are more accurate than smaller ones"
    )

    @field_validator("point_features")
    @classmethod
    def _known_features(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if names != POINT_FEATURES:
            raise ValueError(f"this version computes {', '.join(POINT_FEATURES)}; got {', '.join(names)}")
        return names

    @field_validator("patches")
    @classmethod
    def _known_maps(cls, patches: tuple[tuple[str, int, int], ...]) -> tuple[tuple[str, int, int], ...]:
        if unknown := {name for name, _, _ in patches} - set(MAPS):
            raise ValueError(f"this version computes patches of {'; '.join(MAPS)}; got {'; '.join(sorted(unknown))}")
        if any(not (0 < side <= 9 and 0 < step <= 16) for _, side, step in patches):
            raise ValueError("patches have 1 to 9 points along a side, 1 to 16 lattice steps apart")
        return patches

    @property
    def features(self) -> int:
        """The number of features of a query point."""
        return len(self.point_features) + sum(side**3 for _, side, _ in self.patches)

    @property
    def padding(self) -> int:
        """Lattice steps from a query point to the farthest point of its patches."""
        return max(side // 2 * step for _, side, step in self.patches)


SETTINGS = OccupancySettings()  # of a network that is trained anew
