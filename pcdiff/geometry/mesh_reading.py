"""Reading the mesh files that `mesh_files` writes, also as other programs write them: STL, PLY, OBJ, 3MF and GLB."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree
from zipfile import ZipFile

import numpy as np

from pcdiff.foreign import parsing, read_bytes
from pcdiff.geometry.mesh import EXPORT_AGAIN, MAX_MESH_BYTES, Mesh, check_mesh, check_space, in_space, read_stl
from pcdiff.geometry.mesh_files import MESH_KINDS

MAX_MODEL_BYTES = 128 * 2**20  # of a 3MF's XML, unpacked
MAX_VERTICES = 10**7  # of a 3MF, whose items may repeat an object
HEAD_BYTES = 2_000  # in which a comment names the axes
UNITS = {"micron": 1e-3, "millimeter": 1.0, "centimeter": 10.0, "inch": 25.4, "foot": 304.8, "meter": 1000.0}
CORE = "{http://schemas.microsoft.com/3dmanufacturing/core/2015/02}"


def is_mesh(path: Path) -> bool:
    """Whether the name of a file ends as that of a mesh."""
    return path.suffix.lower().removeprefix(".") in MESH_KINDS


def read_mesh(path: Path, space: str | None = None) -> Mesh:
    """Reads the mesh file that the suffix names; the mesh is in mm, LPS, and equal vertices are one.

    GLB is in metres, with x the patient's left, y superior and z anterior; 3MF names its unit; the others are in mm.
    space: of the other files, `lps` or `ras`; None takes RAS if a comment in the file holds SPACE=RAS, else LPS.
    Raises InputError for another file, a damaged one, and coordinates that are no place in a scan.
    """
    kind = path.suffix.lower().removeprefix(".")
    check_space(space or "lps")
    if kind == "stl":
        return read_stl(path, space)
    expected = f"a {kind.upper()} file with a mesh"
    data = read_bytes(path, expected, EXPORT_AGAIN, MAX_MESH_BYTES)
    with parsing(path, expected, EXPORT_AGAIN):
        mesh, note = _read_3mf(data) if kind == "3mf" else (_read_by_trimesh(data, kind), data[:HEAD_BYTES])
    check_mesh(mesh, path)
    if kind == "glb":
        left, superior, anterior = 1000 * mesh.vertices.T
        return _welded(Mesh(np.stack([left, -anterior, superior], axis=1), mesh.faces))
    if space is None:
        space = "ras" if b"SPACE=RAS" in note else "lps"
    return _welded(Mesh(in_space(mesh.vertices, space), mesh.faces))


def _read_by_trimesh(data: bytes, kind: str) -> Mesh:
    """The mesh of PLY, OBJ or GLB; all parts of a scene are one. Files that it refers to are not looked for."""
    import trimesh

    loaded = trimesh.load_mesh(BytesIO(data), file_type=kind, process=False)
    return Mesh(np.asarray(loaded.vertices, np.float64), np.asarray(loaded.faces))


def _read_3mf(data: bytes) -> tuple[Mesh, bytes]:
    """The meshes that a 3MF builds, in mm, as one, and its metadata. Objects made of others are not read."""
    with ZipFile(BytesIO(data)) as archive:
        entries = [entry for entry in archive.infolist() if entry.filename.lower().endswith(".model")]
        if len(entries) != 1 or entries[0].file_size > MAX_MODEL_BYTES:
            raise ValueError(f"{len(entries)} models in it, or one of more than {MAX_MODEL_BYTES / 1e6:.0f} MB")
        model = _Model()
        parser = ElementTree.XMLParser(target=model)
        with archive.open(entries[0]) as file:
            while part := file.read(2**20):
                parser.feed(part)
        parser.close()
    return model.mesh(), model.note.encode()


class _Model:
    """Takes what it needs of a 3MF's XML as it is parsed: a tree of it would be many times as large."""

    def __init__(self) -> None:
        self.unit, self.note, self._text = 1.0, "", False
        self._vertices: dict[str, list[tuple[float, ...]]] = {}
        self._triangles: dict[str, list[tuple[int, ...]]] = {}
        self._items: list[tuple[str, np.ndarray]] = []
        self._object = ""

    def doctype(self, name: str, *ids: object) -> None:
        """A 3MF has none; an entity of it could stand for gigabytes."""
        raise ValueError("a document type, which a 3MF has not")

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """See xml.etree."""
        kind = tag.removeprefix(CORE)
        self._text = kind == "metadata"
        if kind == "model":
            self.unit = UNITS[attributes.get("unit", "millimeter")]
        elif kind == "object":
            self._object = attributes["id"]
        elif kind == "vertex":
            place = tuple(float(attributes[name]) for name in ("x", "y", "z"))
            self._vertices.setdefault(self._object, []).append(place)
        elif kind == "triangle":
            corners = tuple(int(attributes[name]) for name in ("v1", "v2", "v3"))
            self._triangles.setdefault(self._object, []).append(corners)
        elif kind == "item":
            turn = np.array((attributes.get("transform") or "1 0 0 0 1 0 0 0 1 0 0 0").split(), float)
            self._items.append((attributes["objectid"], turn.reshape(4, 3)))

    def data(self, text: str) -> None:
        """See xml.etree."""
        if self._text:
            self.note = (self.note + text)[:HEAD_BYTES]

    def mesh(self) -> Mesh:
        """The objects where they are to be built, in mm."""
        objects = {}
        for name in dict(self._items):
            if name not in self._triangles:
                raise ValueError("an object without triangles, or made of other objects: join them before the export")
            corners, triangles = np.array(self._vertices[name]), np.array(self._triangles[name])
            if not 0 <= triangles.min() <= triangles.max() < len(corners):
                raise ValueError("triangles of other objects' vertices")
            objects[name] = corners, triangles
        counts = [len(objects[name][0]) for name, _ in self._items]
        if sum(counts) > MAX_VERTICES:
            raise ValueError(f"more than {MAX_VERTICES:,} vertices")
        vertices = [self.unit * (objects[name][0] @ turn[:3] + turn[3]) for name, turn in self._items]
        firsts = np.cumsum(counts) - counts
        faces = [objects[name][1] + first for (name, _), first in zip(self._items, firsts, strict=True)]
        return Mesh(np.concatenate(vertices), np.concatenate(faces))


def _welded(mesh: Mesh) -> Mesh:
    """Equal vertices become one; triangles that this makes a line are left out, and their neighbours meet."""
    import trimesh

    solid = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    solid.merge_vertices()
    faces = np.asarray(solid.faces)
    corners = np.sort(faces, axis=1)
    return Mesh(np.asarray(solid.vertices, np.float64), faces[(np.diff(corners, axis=1) > 0).all(axis=1)])
