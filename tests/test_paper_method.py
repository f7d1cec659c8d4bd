"""The published model: checkpoints through the command line, training, and the method from skull to points."""

from __future__ import annotations

import json
import pickle
import signal
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pcdiff.cli.app import main
from pcdiff.diffusion.schedule import linear_sigmas
from pcdiff.errors import InputError
from pcdiff.evaluation.training_notes import training_notes
from pcdiff.imaging.volumes import write_volume
from pcdiff.methods.friedrich2023 import denoiser
from pcdiff.methods.friedrich2023.checkpoints import PaperModel, import_checkpoints, read_foreign
from pcdiff.methods.friedrich2023.config import PaperConfig, PaperNetworkConfig
from pcdiff.methods.friedrich2023.denoiser import PaperDenoiser
from pcdiff.methods.friedrich2023.denoiser_weights import denoiser_state_to
from pcdiff.methods.friedrich2023.method import PaperMethod
from pcdiff.methods.friedrich2023.points import PaperFrame, outer_mesh, surface_points
from pcdiff.methods.friedrich2023.sampling import LEVELS
from pcdiff.methods.friedrich2023.voxelisation import VoxelisationNetwork
from pcdiff.methods.friedrich2023.voxelisation_weights import voxelisation_state_to
from pcdiff.methods.registry import load_method
from pcdiff.training.friedrich2023 import train as training
from pcdiff.training.loop import Loop
from pcdiff.training.recipes import load_config

QUARTER = PaperNetworkConfig(width=0.25)
TINY = PaperNetworkConfig(
    width=0.25, skull_points=448, implant_points=64, centres=(128, 48, 16, 8), radii=(0.6, 1.0, 1.6, 2.4), neighbours=8
)


@pytest.fixture(scope="module")
def foreign() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return denoiser_state_to(PaperDenoiser(QUARTER).state_dict())


@pytest.fixture(scope="module")
def foreign_voxelisation() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return voxelisation_state_to(VoxelisationNetwork().state_dict())


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return int(stopped.value.code or 0)


# --- checkpoints -----------------------------------------------------------------------------------------------------


def test_both_networks_are_imported_and_exported_unchanged(foreign, foreign_voxelisation, tmp_path, capsys):
    first, second = tmp_path / "ckpt.pth", tmp_path / "model_best.pt"
    wrapped = {name.replace("model.", "model.module.", 1): value for name, value in foreign.items()}
    torch.save({"epoch": 3, "model_state": wrapped, "optimizer_state": {"lr": 0.1}}, first)
    torch.save({"epoch": 1, "state_dict": {f"module.{k}": v for k, v in foreign_voxelisation.items()}}, second)
    out = tmp_path / "weights.safetensors"
    assert run("import-checkpoint", second, first, "-o", out, "--set", "steps=20", "--set", "sampler=dpmpp_2m") == 0
    assert "denoiser and voxelisation" in capsys.readouterr().out
    model = PaperModel.load(out)
    assert (model.config.steps, model.config.sampler, model.config.network.width) == (20, "dpmpp_2m", 0.25)
    assert run("export-checkpoint", out, "-o", tmp_path / "back") == 0
    for command in (
        ("import-checkpoint", second, first, "-o", out),
        ("export-checkpoint", out, "-o", tmp_path / "back"),
    ):
        assert run(*command) == 2
        assert "one that may be of another network" in capsys.readouterr().err
    assert run("export-checkpoint", out, "-o", tmp_path / "back", "--overwrite") == 0
    for name, known in (("denoiser.pth", foreign), ("voxelisation.pt", foreign_voxelisation)):
        back = read_foreign(tmp_path / "back" / name)
        assert back.keys() == known.keys()
        assert all(torch.equal(back[key], known[key]) for key in known)


@pytest.mark.parametrize("key", ["ema", "state_dict", None])
def test_checkpoints_of_forks_are_read(foreign, key, tmp_path):
    path = tmp_path / "fork.pth"
    good = {name.replace("model.", "_orig_mod.model.", 1): value + 1 for name, value in foreign.items()}
    content = good if key is None else {key: good, "epoch": 1}
    if key == "ema":
        content["model_state"] = foreign  # the last step's weights: averaged ones are preferred
    torch.save(content, path)
    state = import_checkpoints([path]).denoiser.state_dict()
    torch.testing.assert_close(state["out.bias"], foreign["model.classifier.2.bias"] + 1)


def test_nothing_in_a_file_is_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "exploded",)

    path = tmp_path / "bomb.pth"
    torch.save({"model_state": {"a": Bomb()}}, path, pickle_module=pickle)
    with pytest.raises(InputError, match="tensors and plain values"):
        read_foreign(path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04half a zip"])
def test_a_file_that_is_no_checkpoint_is_refused_in_one_line(content, tmp_path, capsys):
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    assert run("import-checkpoint", path, "-o", tmp_path / "w.safetensors") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "x.pth" in error
    assert not (tmp_path / "w.safetensors").exists()


def test_two_of_one_network_and_half_a_model_are_refused(foreign, tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"model_state": foreign}, path)
    with pytest.raises(InputError, match="second denoiser"):
        import_checkpoints([path, path])
    import_checkpoints([path]).save(tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="no voxelisation"):
        load_method("paper", tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="--weights"):
        load_method("paper")
    other = Path(str(resources.files("pcdiff"))) / "weights" / "unet.safetensors"
    with pytest.raises(InputError, match="pcdiff-paper-1"):
        load_method("paper", other)


# --- training --------------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe(case, tmp_path, monkeypatch):
    """Two copies of one small case in SkullFix's layout, and a recipe of seconds for a network of coarse voxels."""
    stages = {name: getattr(denoiser, name) for name in ("DOWN", "UP")}
    for name, rows in stages.items():
        monkeypatch.setattr(denoiser, name, tuple((width, convs, r // 4, *rest) for width, convs, r, *rest in rows))
    for name in ("000", "001"):
        for part, volume in zip(("defective_skull", "implant"), case, strict=True):
            (tmp_path / "data" / part).mkdir(parents=True, exist_ok=True)
            write_volume(volume, tmp_path / "data" / part / f"{name}.nrrd")
    text = f"""
method: paper
run: {{data: {tmp_path / "data"}, cache: {tmp_path / "cache"}, out: {tmp_path / "run"}, cases: "000", validation: "001",
  validate_every: 6, validate_cases: 1, workers: 0}}
paper: {{network: {TINY.model_dump_json()}, resolution: 32, spacing_mm: 7.2}}
denoiser: {{epochs: 8, batch: 1, rate: 3.0e-3}}
voxelisation: {{epochs: 6, batch: 1, rate: 1.0e-3}}
pool: 2000
"""
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_losses_fall_and_both_networks_make_a_method(recipe, tmp_path):
    for stage in ("denoiser", "voxelisation"):
        changes = {"stage": stage, "run.validate_every": 4, "voxelisation.epochs": 5}
        assert training.train(load_config(recipe, changes), progress=False) == tmp_path / "run" / f"{stage}.safetensors"
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [row["val_loss"] for row in rows if "val_loss" in row]
    assert len(losses) == 4
    assert losses[1] < losses[0]  # of the noise network
    assert losses[3] < losses[2]  # of the other
    assert isinstance(load_method("paper", tmp_path / "run" / "paper.safetensors"), PaperMethod)
    notes = training_notes(tmp_path / "run" / "paper.safetensors")
    assert notes["windows"] == 8  # samples of the noise network
    assert notes["seconds"] >= 0
    assert notes["device"].startswith("cpu")


def test_the_rate_stays_as_published_or_falls_at_the_end(recipe):
    def rates(**changes):
        config = load_config(recipe, {"denoiser.rate": 1.0, **changes})
        task = training.PaperTask(config, [recipe, recipe], [], torch.device("cpu"), 1)  # two cases
        return [task.rate(step) for step in range(task.steps)]

    assert rates(**{"denoiser.epochs": 4}) == [1.0] * 8
    assert rates(**{"denoiser.epochs": 4, "denoiser.cooldown": 2}) == [1.0] * 5 + [0.75, 0.5, 0.25]


def test_a_run_that_was_stopped_ends_in_the_same_bits(recipe, tmp_path, monkeypatch):
    changes = {"denoiser.epochs": 2}
    training.train(load_config(recipe, changes | {"run.out": str(tmp_path / "whole")}), progress=False)
    advance = Loop._advance

    def advance_and_stop(loop: Loop, batch: object) -> None:
        advance(loop, batch)
        if loop.state.step == 1:
            signal.raise_signal(signal.SIGTERM)

    config = load_config(recipe, changes | {"run.out": str(tmp_path / "halves")})
    with monkeypatch.context() as patched:
        patched.setattr(Loop, "_advance", advance_and_stop)
        assert training.train(config, progress=False).name == "denoiser-checkpoint.safetensors"
    training.train(config, progress=False)
    one, two = (PaperModel.load(tmp_path / part / "denoiser.safetensors").denoiser for part in ("whole", "halves"))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


# --- the method ------------------------------------------------------------------------------------------------------


class Oracle(nn.Module):
    """A noise network that knows the implant: at any level, it returns the noise between the points and the truth."""

    def __init__(self, config: PaperNetworkConfig, truth: torch.Tensor) -> None:
        super().__init__()
        self.config, self.truth = config, truth
        self.levels = linear_sigmas(LEVELS)

    def forward(self, points: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        sigma = self.levels[t].float()[:, None, None]
        noisy = points[:, -self.config.implant_points :] * (1 + sigma**2).sqrt()
        return (noisy - self.truth) / sigma


@pytest.mark.parametrize("sampler", ["ancestral", "dpmpp_2m"])
def test_points_come_back_where_the_implant_is(sampler, case, prior):
    """Frame, noise and sampler together: with an exact network, the points lie on the implant, in millimetres."""
    skull, implant = case
    config = PaperConfig(network=PaperNetworkConfig(implant_points=512), steps=20, sampler=sampler)
    truth = surface_points(implant, 512, np.random.default_rng(3))
    seen = surface_points(skull, config.network.skull_points, np.random.default_rng([7, 0]))
    frame = PaperFrame.of(seen, skull.affine)
    oracle = Oracle(config.network, torch.from_numpy(frame.to_network(truth)).float()[None])
    found = PaperMethod(PaperModel(config, oracle, None))(skull, seed=7).candidates[0].points.points
    np.testing.assert_allclose(found, truth, atol=0.02)
    assert outer_mesh(implant).volume_ml > implant.ml  # half a voxel outside


def test_the_command_line_names_wrong_settings(tmp_path, capsys):
    path = tmp_path / "r.yaml"
    path.write_text("method: paper\nrun: {data: d, cache: c, out: o}\npaper: {network: {centres: [10, 20, 5, 4]}}\n")
    assert run("train", path) == 2
    assert "fewer centres" in capsys.readouterr().err
    assert run("import-checkpoint", path, "-o", tmp_path / "w", "--set", "step=3") == 2
    assert "step" in capsys.readouterr().err
