"""What the JSON files of a case folder hold, as far as it is read again: nothing else of a foreign folder is believed.

Keys that are not named here are kept, but never used.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator

from pcdiff.geometry.stroke_font import is_drawable

Text = Annotated[str, Field(max_length=10_000)]
FileName = Annotated[str, Field(max_length=255, pattern=r"^[^\x00]+$")]
Number = Annotated[float, Field(ge=-1e12, le=1e12)]
Count = Annotated[int, Field(ge=0, le=10**9)]
Value = Annotated[bool | Count | Number | None, Field(union_mode="left_to_right")]


class _Object(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)


class ResultInput(_Object):
    """The input of any result. sha256: None for a result without one."""

    sha256: Text | None = None


class ResultRecord(_Object):
    """The record of any result: of a design, or of a simulation. files: sha256 of each other file in the folder."""

    files: dict[FileName, Text]
    input: ResultInput | None = None


class _CaseInput(ResultInput):
    path: Text
    sha256: Text
    shape: Annotated[list[Count], Field(min_length=3, max_length=3)]
    spacing_mm: Annotated[list[Number], Field(min_length=3, max_length=3)]


class _Defect(_Object):
    label: Count
    area_cm2: Number | None = None
    side: Text | None = None
    place: Text | None = None
    length_mm: Number | None = None
    width_mm: Number | None = None


class _OpenDefect(_Object):
    number: Count | None = None
    place: Text
    area_cm2: Number
    length_mm: Number | None = None
    width_mm: Number | None = None
    why: Text


Place = Annotated[list[Number], Field(min_length=3, max_length=3)]


class _Piece(_Object):
    defect: Count
    length_mm: Number
    width_mm: Number
    height_mm: Number
    ml: Number


class _Engraving(_Object):
    text: Text
    defect: Count
    point: Place
    right: Place
    up: Place
    wall_mm: Number
    depth_mm: Number

    @field_validator("text")
    @classmethod
    def _is_drawable(cls, text: str) -> str:
        if not is_drawable(text):
            raise ValueError("not all of its letters can be engraved")
        return text


class _Fitting(_Object):
    engraved: list[_Engraving] = []


class _FixationPlace(_Object):
    defect: Count
    point: Place
    normal: Place
    across: Place
    bone_mm: Number
    implant_mm: Number


class _Midplane(_Object):
    point: Place
    normal: Place


class _InputCheck(_Object):
    kind: Text | None = None
    format: Text | None = None
    field_of_view_mm: list[Number] | None = None
    slice_thickness_mm: Number | None = None
    tilt_deg: Number | None = None
    threshold_hu: Number | None = None
    noise_hu: Number | None = None
    streaks_hu: Number | None = None
    metal_ml: Number | None = None
    removed_ml: Number | None = None
    defects: list[_Defect] = []
    warnings: list[Text] = []


class _Stl(_Object):
    triangles: Count
    volume_ml: Number
    dsc: Number
    sha256: Text | None = None


class CaseRecord(ResultRecord):
    """The record of a design: what report and view read of `run.json`, see docs/files.md."""

    pcdiff: Text
    settings: dict[Text, JsonValue]
    weights: dict[Text, Text]
    input: _CaseInput
    input_check: _InputCheck | None = None
    defects: Count
    fitting: _Fitting | None = None
    fixation: list[_FixationPlace] = []
    left_open: list[_OpenDefect] | None = None
    midplane: _Midplane | None = None
    implant_ml: Number
    pieces: list[_Piece]
    members_ml: list[Number] = []
    prior_residual_mm: Number
    stl: _Stl
    recommended: Count | None = None
    recommended_because: Text | None = None
    seconds: dict[Text, Annotated[Number, Field(ge=0)]]
    peak_memory_mb: Number
    machine: dict[Text, JsonValue]
    date: Text

    @field_validator("seconds")
    @classmethod
    def _with_total(cls, seconds: dict[str, float]) -> dict[str, float]:
        if "total" not in seconds:
            raise ValueError("expected a total")
        return seconds


class _Figure(_Object):
    name: Text
    value: Value = None
    limit: Value = None
    unit: Text | None = None
    rule: Text | None = None
    passed: bool | None = None


class _Check(_Object):
    name: Text
    title: Text
    words: Text = ""
    passed: bool | None = None
    figures: list[_Figure] = []


class ChecksRecord(_Object):
    """What is read of checks.json and checks_K.json."""

    passed: bool | None = None
    checks: list[_Check]
