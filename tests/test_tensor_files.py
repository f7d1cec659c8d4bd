"""Safetensors files: format, config and layout are checked, and a refusal names what differs."""

from __future__ import annotations

from pathlib import Path
from shutil import copyfile

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from small_networks import SMALL, small_denoiser

import pcdiff
from pcdiff.config import StrictConfig
from pcdiff.errors import InputError
from pcdiff.files import sha256, shipped_sha256
from pcdiff.methods.surface.config import LAYOUT, SurfaceConfig
from pcdiff.methods.surface.weights import load_denoiser, save_denoiser
from pcdiff.methods.volumetric.model import VolumetricModel
from pcdiff.prior.model import ShapePrior
from pcdiff.prior.settings import SETTINGS, PriorSettings
from pcdiff.tensor_files import check_layout, read_metadata, read_tensors, write_tensors

WEIGHTS = Path(pcdiff.__file__).parent / "weights"
LOADERS = {
    "denoiser": load_denoiser,
    "unet": VolumetricModel.load,
    "prior": ShapePrior.load,
}


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


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[0.0,8.0,1.5]", "[0.0,8.0,0.0]", "rings lead outward"),
        ('"lengths":[70.0,20.0]', '"lengths":[70.0,-1.0]', "greater than 0"),
        ('"lengths":[70.0,20.0]', '"lengths":[70.0]', "an amplitude for each length"),
        ('"noise":0.15', '"noise":NaN', "finite number"),
    ],
)
def test_settings_that_would_fail_in_use_are_refused_when_read(tmp_path, old, new, message):
    shipped = read_tensors(WEIGHTS / "prior.safetensors", "a shape model", "")
    assert old in shipped.metadata["config"]
    changed = shipped.metadata["config"].replace(old, new)
    write_tensors(tmp_path / "prior.safetensors", shipped.tensors, shipped.metadata | {"config": changed})
    with pytest.raises(InputError, match=message):
        ShapePrior.load(tmp_path / "prior.safetensors")


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


def test_a_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "own.safetensors"
    config = Outer().model_dump_json()
    write_tensors(path, {"x": np.arange(6.0), "y": np.ones(3, np.uint8)}, {"format": "some-1", "config": config})
    whole = path.read_bytes()
    assert read_tensors(path, "numbers", "make others", "some-1").tensors["x"].tolist() == [0, 1, 2, 3, 4, 5]
    checksum = range(whole.index(b"checksum") - 2, whole.index(b"checksum") + 10)  # without one nothing is compared
    missed = []
    for place in set(range(len(whole))) - set(checksum):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            read_tensors(path, "numbers", "make others", "some-1").config(Outer)
        except InputError:
            continue
        missed.append(place)
    assert all(whole[place : place + 1] == b" " for place in missed), "only blanks after the header may differ"


@pytest.mark.parametrize("tensors", [{"b": np.arange(5), "a": np.ones(3, np.uint8)}, {"x": torch.arange(7.0)}])
def test_the_same_content_gives_the_same_bytes(tmp_path, tensors):
    metadata = {name: f"the value of {name}, \u00e9" for name in "zyxwvutsabc"}  # the library shuffles them
    written = set()
    for number in range(8):
        path = tmp_path / f"{number}.safetensors"
        write_tensors(path, tensors, metadata)
        written.add(path.read_bytes())
    assert len(written) == 1
    content = read_tensors(path, "numbers", "make others")
    assert content.metadata == metadata
    assert all(np.array_equal(content.tensors[name], np.asarray(value)) for name, value in tensors.items())


def test_a_copy_of_the_shipped_shape_model_is_compared_too(tmp_path):
    """It is older than checksums."""
    data = bytearray((WEIGHTS / "prior.safetensors").read_bytes())
    path = tmp_path / "prior.safetensors"
    path.write_bytes(data)
    assert ShapePrior.load(path).heads == 59
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="or the shipped one as it is, got neither: it may be damaged"):
        ShapePrior.load(path)


def test_a_checksum_is_the_same_for_both_libraries(tmp_path):
    for name, values in (("np", np.arange(3.0)), ("pt", torch.arange(3.0, dtype=torch.float64))):
        write_tensors(tmp_path / name, {"x": values}, {"format": "some-1"})
    checksums = []
    for name in ("np", "pt"):
        with safe_open(tmp_path / name, "np") as file:
            checksums.append(file.metadata()["checksum"])
        assert read_tensors(tmp_path / name, "numbers", "make others").metadata == {"format": "some-1"}
    assert checksums[0] == checksums[1]
    assert len(checksums[0]) == 64


@pytest.mark.parametrize(
    ("name", "kind", "shape", "message"),
    [
        ("x", "float", (3,), r"x as float \(3\), got float64 \(2, 3\); make others"),
        ("x", "float", (None, 4), r"x as float \(any, 4\), got"),
        ("x", "integer", (2, 3), r"x as integer \(2, 3\), got float64"),
        ("n", "uint8", (2,), r"n as uint8 \(2\), got uint16"),
        ("nan", "float", (1,), "nan of finite numbers, got NaN or infinity"),
        ("z", "float", (1,), "got one without z; make others"),
    ],
)
def test_arrays_have_the_kind_and_shape_expected(tmp_path, name, kind, shape, message):
    arrays = {"x": np.zeros((2, 3)), "n": np.zeros(2, np.uint16), "nan": np.array([np.nan])}
    save_file(arrays, tmp_path / "some")
    file = read_tensors(tmp_path / "some", "numbers", "make others")
    assert file.array("x", "float", (None, 3)).shape == (2, 3)
    assert np.isnan(file.array("nan", "float", (1,), finite=False)).all()
    with pytest.raises(InputError, match=message):
        file.array(name, kind, shape)


def test_shipped_weights_are_those_listed():
    """After new weights: make checksums."""
    listed = (WEIGHTS / "SHA256SUMS").read_text().splitlines()
    shipped = [path for kind in ("*.safetensors", "*.yaml") for path in sorted(WEIGHTS.glob(kind))]
    assert listed == [f"{sha256(path)}  {path.name}" for path in shipped]
    assert shipped_sha256(WEIGHTS / "prior.safetensors") == sha256(WEIGHTS / "prior.safetensors")
    with pytest.raises(InputError, match="expected one of the shipped weights"):
        shipped_sha256(WEIGHTS / "mine.safetensors")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["denoiser", "unet", "prior"])
def test_weights_that_are_not_finite_are_refused(tmp_path, name, value):
    copyfile(WEIGHTS / f"{name}.safetensors", tmp_path / f"{name}.safetensors")
    LOADERS[name](tmp_path / f"{name}.safetensors")  # a copy elsewhere is a user's own file
    tensors = load_file(tmp_path / f"{name}.safetensors")
    some = next(each for each in sorted(tensors) if tensors[each].dtype.kind == "f" and tensors[each].ndim > 1)
    tensors[some].flat[0] = value
    save_file(tensors, tmp_path / f"{name}.safetensors", read_metadata(WEIGHTS / f"{name}.safetensors"))
    with pytest.raises(InputError, match=r"finite .*got NaN or infinity"):
        LOADERS[name](tmp_path / f"{name}.safetensors")


def test_a_small_file_cannot_ask_for_a_large_network(tmp_path):
    path = tmp_path / "denoiser.safetensors"
    for network in (SMALL.model_copy(update={"width": 4096, "blocks": 64}), SMALL.model_copy(update={"blocks": 10**9})):
        config = SurfaceConfig(network=SMALL).model_copy(update={"network": network})
        save_denoiser(path, small_denoiser().state_dict(), config, {})
        with pytest.raises(InputError, match=r"weights of another version"):
            load_denoiser(path)
