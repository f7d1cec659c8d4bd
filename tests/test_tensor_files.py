"""Safetensors files: format, config and layout are checked, and a refusal names what differs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from small_networks import SMALL, small_denoiser

from pcdiff.config import StrictConfig
from pcdiff.errors import InputError
from pcdiff.methods.surface.config import LAYOUT, SurfaceConfig
from pcdiff.methods.surface.weights import load_denoiser, save_denoiser
from pcdiff.prior.model import ShapePrior
from pcdiff.prior.settings import SETTINGS, PriorSettings
from pcdiff.tensor_files import check_layout, read_metadata, read_tensors


class Inner(StrictConfig):
    """A section of a config."""

    step: float = 0.1


class Outer(StrictConfig):
    """A config with a section."""

    inner: Inner = Inner()
    names: tuple[str, ...] = ("a", "b")


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "some.safetensors"
    save_file({"x": np.arange(3)}, path, {"format": "some-1", "config": Outer().model_dump_json()})
    return path


def test_tensors_metadata_and_config_are_read(path):
    file = read_tensors(path, "numbers", "make others", "some-1")
    assert np.array_equal(file.tensors["x"], np.arange(3))
    assert file.metadata["format"] == "some-1"
    assert file.config(Outer) == Outer()
    assert read_tensors(path, "numbers", "make others", framework="pt").tensors["x"].tolist() == [0, 1, 2]
    assert read_metadata(path) == file.metadata


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "expected numbers, got: .*; make others"),
        (b"text", "expected numbers, got: .*; make others"),
        ({"format": "some-0"}, "expected numbers of format some-1, got some-0; make others"),
        ({}, "expected numbers of format some-1, got a file without a format; make others"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "other.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        save_file({"x": np.arange(3)}, path, content)
    with pytest.raises(InputError, match=message) as caught:
        read_tensors(path, "numbers", "make others", "some-1")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"inner": {"step": 0.1}}', "names: not in the file"),
        ('{"inner": {}, "names": ["a"]}', "inner.step: not in the file"),
        ('{"inner": {"step": "long"}, "names": ["a"]}', "inner.step: .*number"),
        ('{"inner": {"step": 1, "stride": 2}, "names": ["a"]}', "inner.stride: .*not permitted"),
        ("no json", "weights of another version"),
        (None, "inner.step, names|inner, names"),
    ],
)
def test_a_config_is_complete_and_of_this_version(tmp_path, config, message):
    path = tmp_path / "some.safetensors"
    save_file({"x": np.arange(3)}, path, {} if config is None else {"config": config})
    with pytest.raises(InputError, match=message):
        read_tensors(path, "numbers", "make others").config(Outer)


def test_a_layout_that_differs_is_named(path):
    check_layout(path, "layout", Outer(), Outer())
    with pytest.raises(InputError, match=r"another layout: inner is step=0.2, expected step=0.1\. Use"):
        check_layout(path, "layout", Outer(inner=Inner(step=0.2)), Outer())
    with pytest.raises(InputError, match="names without b, with c"):
        check_layout(path, "layout", Outer(names=("a", "c")), Outer())
    with pytest.raises(InputError, match="names in another order"):
        check_layout(path, "layout", Outer(names=("b", "a")), Outer())


def test_a_shape_model_on_another_map_is_refused(prior, tmp_path):
    layout = SETTINGS.layout.model_copy(update={"pixel_mm": 2.0})
    moved = ShapePrior(
        prior.mean, prior.std, prior.modes, prior.present, 59, SETTINGS.model_copy(update={"layout": layout})
    )
    moved.save(tmp_path / "prior.safetensors")
    with pytest.raises(InputError, match=r"another direction map: pixel_mm is 2\.0, expected 1\.5"):
        ShapePrior.load(tmp_path / "prior.safetensors")


def test_the_settings_of_a_shape_model_travel_with_it(prior, tmp_path):
    completion = SETTINGS.completion.model_copy(update={"band_mm": 9.0})
    changed = SETTINGS.model_copy(update={"completion": completion})
    ShapePrior(prior.mean, prior.std, prior.modes, prior.present, 59, changed).save(tmp_path / "prior.safetensors")
    assert ShapePrior.load(tmp_path / "prior.safetensors").settings == changed
    assert prior.settings == PriorSettings()


def test_a_denoiser_with_other_inputs_is_refused(tmp_path):
    path = tmp_path / "denoiser.safetensors"
    layout = LAYOUT.model_copy(update={"border_scale_mm": 9.0, "static": LAYOUT.static[:-1]})
    config = SurfaceConfig(network=SMALL, layout=layout)
    save_denoiser(path, small_denoiser().state_dict(), config, {})
    with pytest.raises(InputError, match=r"static without border_distance; border_scale_mm is 9\.0, expected 8\.0"):
        load_denoiser(path)
    save_denoiser(path, small_denoiser().state_dict(), config.model_copy(update={"layout": LAYOUT}), {})
    assert load_denoiser(path)[1].layout == LAYOUT


def test_a_shape_model_of_an_earlier_format_is_refused(tmp_path):
    path = tmp_path / "prior.safetensors"
    save_file({"mean": np.arange(4, dtype=np.float32)}, path, {"format": "pcdiff-prior-1", "heads": "59"})
    with pytest.raises(InputError, match="of format pcdiff-prior-2, got pcdiff-prior-1; use the shipped one"):
        ShapePrior.load(path)
