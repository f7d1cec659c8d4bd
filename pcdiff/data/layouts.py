"""The layouts of data sets: one row of the table each, and a YAML file for any other folder. docs/datasets.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from pcdiff.config import StrictConfig, read_yaml, validate_config
from pcdiff.data.patterns import find_files
from pcdiff.errors import InputError
from pcdiff.files import shipped_file
from pcdiff.foreign import read_json
from pcdiff.geometry.mesh_reading import is_mesh
from pcdiff.imaging.formats.header import shown
from pcdiff.imaging.labels import DATASET, NNUNetDataset

YAML = (".yaml", ".yml")
Text = Annotated[str, BeforeValidator(lambda value: str(value) if type(value) is int else value)]  # 7 as YAML has it
Patterns = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]


class Files(StrictConfig):
    """Patterns of the files of a case, see `patterns.find_files`; a part that the data set lacks has none.

    skull_mesh: the surface of the defective skull in the axes of the implant's mesh, where those are not known.
    """

    complete_skull: Patterns = ()
    defective_skull: Patterns = ()
    implant: Patterns = ()
    skull_mesh: Patterns = ()
    heads: str = "*"


class DatasetConfig(Files):
    """A YAML file that describes a data set. Names and defaults: docs/datasets.md."""

    folder: Path = Field(default=Path(), description="of the data set; relative to the file")
    mesh_space: Literal["lps", "ras"] | None = Field(default=None, description="axes of the implants' meshes")
    label: Text | None = Field(default=None, description="of the implant, where its files hold several")
    split: dict[str, Text] = Field(default={}, description="name -> cases as for --cases")


@dataclass(frozen=True)
class Dataset:
    """What a data set holds.

    folder: of the files. cases: name -> part (`complete_skull`, `defective_skull`, `implant`, `skull_mesh`) -> file.
    splits: name -> cases, as for `find_cases`. mesh_space, label: see `DatasetConfig`.
    """

    source: Path
    folder: Path
    layout: str
    cases: Mapping[str, Mapping[str, Path]]
    splits: Mapping[str, str] = field(default_factory=dict)
    mesh_space: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Layout:
    """A row of the table. splits: name -> its files; a data set without splits has one without a name."""

    title: str
    files: str
    source: str
    splits: Mapping[str, Files]
    adjust: Callable[[Dataset], Dataset] = lambda dataset: dataset


def _nnunet_labels(dataset: Dataset) -> Dataset:
    """The label that is the implant; a single label that is called a skull is the complete one."""
    path = dataset.source / DATASET
    remedy = 'write it, such as {"labels": {"background": 0, "implant": 1}}, or describe the folder by a YAML file'
    given = read_json(path, NNUNetDataset, "the dataset.json of nnU-Net, with labels", remedy)["labels"]
    names = [str(value if key.isdecimal() else key) for key, value in given.items()]
    names = [name for name in names if name.lower() != "background"]
    if len(names) == 1:
        if "implant" in names[0].lower() or "skull" not in names[0].lower():
            return dataset
        renamed = {"implant": "complete_skull"}
        cases = {name: {renamed.get(k, k): file for k, file in of.items()} for name, of in dataset.cases.items()}
        return replace(dataset, cases=cases)
    labels = [name for name in names if "implant" in name.lower()]
    if len(labels) != 1:
        raise InputError(
            f"{path}: expected one label, or one called implant, got {shown(', '.join(names)) or 'none'}; rename the "
            "labels, or name one in a YAML file"
        )
    return replace(dataset, label=labels[0])


def _mug500_axes(dataset: Dataset) -> Dataset:
    """A mesh's axes are not known without the skull's own surface, so one that is missing is asked for."""
    cases = {
        name: {"skull_mesh": files["implant"].with_name(f"{name}.stl"), **files}
        if "implant" in files and is_mesh(files["implant"])
        else files
        for name, files in dataset.cases.items()
    }
    return replace(dataset, cases=cases)


def _mug500(file: str) -> tuple[str, ...]:
    """Batches are unpacked into the folder, into folders of their names, or, by some programs, twice so."""
    return tuple(f"{above}{{head}}/{file}" for above in ("", "*/", "*/*/"))


LAYOUTS = {
    "skullfix": Layout(
        "SkullFix, SkullBreak",
        "complete_skull/NNN.nrrd, defective_skull/NNN.nrrd or defective_skull/CLASS/NNN.nrrd, implant/ likewise",
        "Kodym et al. 2021, doi 10.1016/j.dib.2021.106902",
        {
            "": Files(
                complete_skull=("complete_skull/{head}", "complete_skull/{kind}/{head}"),
                defective_skull=("defective_skull/{head}", "defective_skull/{kind}/{head}"),
                implant=("implant/{head}", "implant/{kind}/{head}"),
            )
        },
    ),
    "nnunet": Layout(
        "nnU-Net",
        "dataset.json, imagesTr/CASE_0000.nii.gz (defective skull), labelsTr/CASE.nii.gz (implant), imagesTs, labelsTs",
        "Isensee et al. 2021, doi 10.1038/s41592-020-01008-z",
        {
            split: Files(defective_skull=(f"images{end}/{{head}}_0000",), implant=(f"labels{end}/{{head}}",))
            for split, end in (("training", "Tr"), ("test", "Ts"))
        },
        _nnunet_labels,
    ),
    "mug500": Layout(
        "MUG500+",
        "A0001/A0001.nrrd (healthy); B0001/B0001.nrrd, B0001_implant.stl, B0001.stl (craniotomies)",
        "Li et al. 2021, doi 10.1016/j.dib.2021.107524",
        {
            "healthy": Files(complete_skull=_mug500("{head}.nrrd"), heads="A[0-9]*"),
            "craniotomy": Files(
                defective_skull=_mug500("{head}.nrrd"),
                implant=_mug500("{head}_implant.stl"),
                skull_mesh=_mug500("{head}.stl"),
                heads="B[0-9]*",
            ),
        },
        _mug500_axes,
    ),
}


def read_dataset(source: Path) -> Dataset:
    """The files of a data set: a folder in one of `LAYOUTS`, or a YAML file that describes one.

    Raises InputError for anything else, a wrong YAML file or dataset.json, a pattern that nothing fits, and two files
    of one case.
    """
    source = Path(source)
    if source.is_file() and source.suffix.lower() in YAML:
        return _described(source)
    for name, layout in LAYOUTS.items():
        found = {split: _cases(source, files) for split, files in layout.splits.items()}
        if any(found.values()):
            cases = {case: files for of in found.values() for case, files in of.items()}
            splits = {split: ",".join(of) for split, of in found.items() if split and of}
            return layout.adjust(Dataset(source, source, name, cases, splits))
    raise _no_dataset(source)


def _described(path: Path) -> Dataset:
    expected = "a YAML file with patterns such as implant: implants/{head}.stl"
    remedy = f"{shipped_file('docs/datasets.md')} lists the names"
    config = validate_config(DatasetConfig, read_yaml(path, expected), str(path), remedy)
    folder = path.parent / config.folder
    if not folder.is_dir():
        raise InputError(
            f"{path}: expected folder: to be that of the data set, got {folder}, which is none; correct it"
        )
    try:
        cases = _cases(folder, config)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    for part in ("complete_skull", "defective_skull", "implant", "skull_mesh"):
        if (patterns := getattr(config, part)) and not any(part in files for files in cases.values()):
            raise InputError(
                f"{path}: {part}: expected files that fit {' or '.join(patterns)}, found none in {folder}; correct the "
                "pattern or the folder"
            )
    if not cases:
        raise InputError(f"{path}: expected patterns for two of complete_skull, defective_skull, implant; got none")
    return Dataset(path, folder, "yaml", cases, config.split, config.mesh_space, config.label)


def _cases(folder: Path, files: Files) -> dict[str, dict[str, Path]]:
    """The files of each case. A complete skull without a class belongs to every class of its head."""
    parts = {
        part: _part(folder, files, part) for part in ("complete_skull", "defective_skull", "implant", "skull_mesh")
    }
    complete = parts["complete_skull"]
    names = parts["defective_skull"].keys() | parts["implant"].keys()
    names |= complete.keys() - {head_of(name) for name in names}
    parts["complete_skull"] = {name: complete.get(name, complete.get(head_of(name))) for name in names}
    return {
        name: {part: file for part, of in parts.items() if (file := of.get(name)) is not None} for name in sorted(names)
    }


def _part(folder: Path, files: Files, part: str) -> dict[str, Any]:
    """The files of one part; what lies in a folder of DICOM slices, which an earlier pattern found, is its own."""
    found: dict[str, Path] = {}
    for pattern in getattr(files, part):
        more = find_files(folder, pattern, files.heads, meshes=part in ("implant", "skull_mesh"), known=found)
        taken = set(found.values())
        found = {name: file for name, file in more.items() if not taken.intersection(file.parents)} | found
    return found


def _no_dataset(source: Path) -> InputError:
    if not source.is_dir():
        found = "no such folder" if not source.exists() else "another file"
    elif any(source.glob("*.zip")):
        found = "zip archives, which must be unpacked"
    else:
        found = "none of them" if any(source.iterdir()) else "an empty folder"
    return InputError(
        f"{source}: expected a data set in a layout that `pcdiff datasets` lists, such as complete_skull/NNN.nrrd and "
        f"implant/NNN.nrrd, got {found}; give the folder of the data set itself, or a YAML file that describes it"
    )


def head_of(name: str) -> str:
    """`NNN` of `NNN` or `<class>/NNN`."""
    return name.rsplit("/", 1)[-1]
