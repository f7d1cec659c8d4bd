"""The package as a whole: what an import loads, the direction of imports, the public interface, and the wheel."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
import zipfile
from graphlib import TopologicalSorter
from importlib import metadata
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import pcdiff
from pcdiff.errors import InputError
from pcdiff.files import shipped_file
from pcdiff.prior.model import ShapePrior
from pcdiff.training.recipes import load_config

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pcdiff"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
# A room imports only rooms that stand before it.
ROOMS = (
    *("errors", "environment", "foreign", "files", "figures", "config", "tensor_files", "array_files"),
    *("geometry", "imaging", "diffusion", "nets", "reconstruct", "data"),
    *("prior", "methods", "checks", "report", "evaluation", "pipeline", "cohort", "training", "cli", "__main__"),
)
# Names that differ between an import and the package index.
DISTRIBUTIONS = {
    "dask_jobqueue": "dask-jobqueue",
    "PIL": "pillow",
    "nrrd": "pynrrd",
    "skimage": "scikit-image",
    "yaml": "pyyaml",
}


def imports(tree: ast.AST, everywhere: bool = True) -> set[str]:
    """Dotted names that a module imports; not `everywhere`: only what is loaded with it."""
    found = set()
    for node in ast.walk(tree) if everywhere else loaded_at_once(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in MODULES else node.module for name in whole}
    return found


def room(module: str) -> str:
    """The part after `pcdiff.`: a file, or a folder."""
    return module.partition(".")[2].partition(".")[0]


def loaded_at_once(tree: ast.AST) -> list[ast.AST]:
    """Statements outside of functions and of `if TYPE_CHECKING`."""
    nodes: list[ast.AST] = []
    for node in ast.iter_child_nodes(tree):
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if isinstance(node, ast.FunctionDef) or typing_only:
            continue
        nodes += [node, *loaded_at_once(node)]
    return nodes


def loads(*modules: str) -> set[str]:
    """What a fresh interpreter holds after importing the modules."""
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_command_line_starts_light() -> None:
    heavy = {"torch", "open3d", "skimage", "SimpleITK", "scipy", "numpy", "yaml", "pydantic"}
    assert not heavy & loads("pcdiff", "pcdiff.cli", "pcdiff.__main__")


def test_a_page_takes_libraries_out_of_packages_that_it_does_not_load() -> None:
    code = "import sys, pcdiff.report.page as page; page.three_js(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"trimesh", "networkx"} & set(done.stdout.split())


def test_the_public_interface_loads_a_name_at_its_first_use() -> None:
    modules = loads("pcdiff")
    assert {name for name in modules if name.partition(".")[0] == "pcdiff"} == {"pcdiff"}
    assert not {"torch", "numpy", "scipy", "typer"} & modules
    code = (
        "import sys, pcdiff; pcdiff.Volume, pcdiff.Mesh, pcdiff.PointCloud, pcdiff.design, pcdiff.check;"
        "pcdiff.read_skull, pcdiff.load_method('prior'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there_for_users_and_type_checkers() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    typed = {
        alias.asname
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    }
    assert typed | {"DISTRIBUTION", "NOTICE", "__version__"} == set(pcdiff.__all__)
    for name in pcdiff.__all__:
        assert getattr(pcdiff, name) is not None
    assert set(pcdiff.__all__) <= set(dir(pcdiff))
    with pytest.raises(AttributeError, match=r"no attribute 'desing'; public names: .*design"):
        _ = pcdiff.desing  # type: ignore[attr-defined]


def test_design_is_the_function_in_any_order_of_imports() -> None:
    for first in ("pcdiff.pipeline.flow", "pcdiff.geometry.volume"):
        code = (
            f"import {first}, pcdiff\nfrom pcdiff import design\nimport pcdiff.pipeline.flow as flow\n"
            "assert pcdiff.design is design is flow.design"
        )
        subprocess.run([sys.executable, "-c", code], check=True)


def test_the_prior_needs_no_torch() -> None:
    assert not {"torch", "open3d"} & loads(
        "pcdiff.pipeline.demo", "pcdiff.methods.prior", "pcdiff.pipeline.flow", "pcdiff.evaluation.runner"
    )


def test_imports_point_one_way() -> None:
    graph = {
        name: (imports(ast.parse(path.read_text()), False) & MODULES.keys()) - {name} for name, path in MODULES.items()
    }
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert set(order) == MODULES.keys()
    for name, imported in graph.items():
        assert name == "pcdiff.__main__" or "pcdiff.cli" not in imported


def test_a_room_imports_only_rooms_before_it() -> None:
    assert {room(name) for name in MODULES} - {""} == set(ROOMS)
    for name, path in MODULES.items():
        if name == "pcdiff":  # the public interface, lazily, from every room
            continue
        allowed = {"", *ROOMS[: ROOMS.index(room(name)) + 1]} if room(name) else {""}
        above = {
            module for module in imports(ast.parse(path.read_text())) & MODULES.keys() if room(module) not in allowed
        }
        assert not above, f"{name} imports {', '.join(sorted(above))}"


def test_the_report_reads_no_scans_and_no_case_folders() -> None:
    """It draws values, `report.contents.CaseContents`; `pipeline.contents` makes them."""
    for name, path in MODULES.items():
        if room(name) == "report":
            rooms = {room(module) for module in imports(ast.parse(path.read_text())) & MODULES.keys()}
            assert rooms <= {"", "errors", "files", "figures", "geometry", "report"}, name


def test_open3d_is_imported_where_it_is_used() -> None:
    for name, path in MODULES.items():
        at_once = imports(ast.parse(path.read_text()), False)
        assert not any(module.partition(".")[0] == "open3d" for module in at_once), name


def test_whatever_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    declared = {"".join(c if c.isalnum() or c in "-_" else " " for c in text).split()[0].lower() for text in wanted}
    declared |= {"pcdiff", "pytorch3d"}  # pytorch3d has no package on the index
    for name, path in MODULES.items():
        tops = {module.partition(".")[0] for module in imports(ast.parse(path.read_text()))} - sys.stdlib_module_names
        assert {DISTRIBUTIONS.get(top, top).lower() for top in tops} <= declared, name


@pytest.mark.parametrize(("file", "extras"), [("run.txt", []), ("dev.txt", ["dev", "train"]), ("docs.txt", ["docs"])])
def test_locks_hold_what_the_project_asks_for(file: str, extras: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "requirements" / file).read_text()
    locked: dict[str, list[str]] = {}
    for entry in re.split(r"\n(?=\S)", text.strip()):
        name, version = re.match(r"([\w.-]+)==(\S+)", entry).groups()
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), name
        locked.setdefault(name, []).append(version)
    optional = project["optional-dependencies"]
    for line in [*project["dependencies"], *chain(*(optional[extra] for extra in extras))]:
        wanted = Requirement(line)
        if wanted.name != "torch":  # each index has its own builds of it
            versions = locked[canonicalize_name(wanted.name)]
            assert all(version in wanted.specifier for version in versions), f"{line}: {versions}; run `make lock`"
    assert "torch" not in locked
    assert "://" not in text


def test_extras_are_documented() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    texts = "".join((ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md", "Makefile"))
    for extra in extras:
        assert re.search(rf"\[(\w+,)*{extra}(,\w+)*\]", texts), f"pip install '.[{extra}]' is named nowhere"


@pytest.mark.parametrize("name", MODULES)
def test_what_is_public_has_a_docstring(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text())
    assert ast.get_docstring(tree) or not tree.body, name
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{name}.{node.name}"
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{name}.{node.name}"


def test_licences_are_in_the_package() -> None:
    assert "MIT License" in (ROOT / "LICENSE").read_text()
    assert "CC BY-NC-SA 4.0" in (PACKAGE / "weights" / "LICENSE").read_text()


def test_version_is_written_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dynamic"] == ["version"]
    assert "version" not in project
    assert project["name"] == pcdiff.DISTRIBUTION
    assert metadata.version(pcdiff.DISTRIBUTION) == pcdiff.__version__
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {pcdiff.__version__}\n" in citation
    assert "\nlicense: MIT\n" in citation
    assert f"## {pcdiff.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_weights_are_shipped_and_small() -> None:
    weights = {path.name: path.stat().st_size for path in (PACKAGE / "weights").glob("*.safetensors")}
    names = ["prior", "denoiser", "unet", "atlas", "encoder_decoder", "symmetry", "slices", "patches", "coarse_to_fine"]
    assert weights.keys() == {f"{name}.safetensors" for name in [*names, "sparse"]}
    assert sum(weights.values()) < 60e6
    assert ShapePrior.shipped().heads == 59, "the model card says 59 heads"


def test_nothing_is_pickled() -> None:
    pickles = {".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".npz"}
    assert not [path.name for path in PACKAGE.rglob("*") if path.suffix in pickles]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_load_and_refuse_unknown_keys(path: Path, tmp_path: Path) -> None:
    load_config(path)
    misspelt = tmp_path / "misspelt.yaml"
    misspelt.write_text(path.read_text() + "\noptimizer:\n  steps: 1\n")
    with pytest.raises(InputError, match=r"optimizer: .*not permitted"):
        load_config(misspelt)


def test_the_wheel_holds_code_weights_recipes_and_documents(tmp_path: Path) -> None:
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed: pip install '.[dev]'")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("pcdiff_cranial-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    assert {path.relative_to(ROOT).as_posix() for path in MODULES.values()} <= names
    expected = {"py.typed", "weights/LICENSE", "report/web/viewer.js", "configs/diffusion.yaml", "docs/checks.md"}
    expected |= {
        "weights/SHA256SUMS",
        *(f"report/web/{path.name}" for path in (PACKAGE / "report" / "web").glob("*.html")),
    }
    expected |= {f"weights/{path.name}" for path in (PACKAGE / "weights").glob("*.safetensors")}
    assert {f"pcdiff/{name}" for name in expected} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.partition("/")[0] for name in names} == {"pcdiff", f"pcdiff_cranial-{pcdiff.__version__}.dist-info"}
    assert not [name for name in names if name.endswith((".png", ".json")) and "dist-info" not in name]
    code = (
        "import pcdiff; from pcdiff.files import shipped_file; from pcdiff.cli.train import recipe_file;"
        "print(pcdiff.__file__, shipped_file('docs/checks.md'), recipe_file('diffusion'), sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "site", check=True, capture_output=True, text=True
    )
    found = [Path(line) for line in done.stdout.splitlines()]
    assert [path.is_relative_to(tmp_path / "site" / "pcdiff") for path in found] == [True] * 3
    assert all(path.is_file() for path in found)


def test_a_clone_finds_recipes_and_documents_beside_the_package() -> None:
    assert shipped_file("configs/diffusion.yaml") == ROOT / "configs" / "diffusion.yaml"
    assert shipped_file("docs/checks.md").is_file()


def test_the_install_hint_names_the_distribution() -> None:
    assert pcdiff.install_hint("dicom") == "pip install 'pcdiff-cranial[dicom]' (in a clone: pip install '.[dicom]')"
    for path in [*MODULES.values(), *(ROOT / "docs").glob("*.md"), ROOT / "README.md"]:
        assert not re.search(r"pip install '?pcdiff(?!-cranial)", path.read_text()), f"{path} names another package"
