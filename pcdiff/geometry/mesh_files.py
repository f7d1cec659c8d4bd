"""Mesh files for other tools: STL, PLY, OBJ and 3MF in millimetres, GLB in metres as glTF requires."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import numpy as np

from pcdiff.errors import InputError
from pcdiff.files import written_beside
from pcdiff.geometry.mesh import Mesh, in_space, write_stl

MESH_KINDS = ("stl", "ply", "obj", "3mf", "glb")
TYPES = """<?xml version="1.0" encoding="UTF-8"?>
<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">
<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>
<Default Extension="model" ContentType="application/vnd.ms-package.3dmanufacturing-3dmodel+xml"/>
</Types>
"""
RELATIONS = """<?xml version="1.0" encoding="UTF-8"?>
<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">
<Relationship Target="/3D/3dmodel.model" Id="model" Type="http://schemas.microsoft.com/3dmanufacturing/2013/01/3dmodel"/>
</Relationships>
"""


def mesh_kinds(text: str) -> tuple[str, ...]:
    """File kinds separated by commas -> each once, in the order of MESH_KINDS. Raises InputError for an unknown one."""
    named = {kind.strip().lower().removeprefix(".") for kind in text.split(",")}
    for kind in sorted(named - set(MESH_KINDS)):
        raise InputError(
            f"unknown mesh file {kind!r}: expected some of {', '.join(MESH_KINDS)}; separate them with commas"
        )
    return tuple(kind for kind in MESH_KINDS if kind in named)


def write_mesh(mesh: Mesh, path: str | Path, space: str = "lps") -> None:
    """Writes the file that the suffix names: .stl, .ply, .obj or .3mf in mm, in `lps` or `ras`; .glb in metres.

    glTF always has its own axes: x is the patient's left, y superior, z anterior. The same mesh gives
    the same bytes. Raises InputError for another suffix or space, a mesh without triangles, and a file that cannot be
    written.
    """
    path = Path(path)
    (kind,) = mesh_kinds(path.suffix or "none")
    if kind == "stl":
        write_stl(mesh, path, space)
        return
    if len(mesh.faces) == 0:
        raise InputError(f"{path}: expected a mesh with triangles, got an empty one; there is no implant to write")
    vertices = in_space(mesh.vertices, space)
    note = f"SPACE={space.upper()}; UNIT=mm"
    with written_beside(path) as part:
        if kind == "3mf":
            _write_3mf(vertices, mesh.faces, note, part)
        else:
            part.write_bytes(_export(mesh, vertices, kind, note))


def gltf_axes(vectors: np.ndarray) -> np.ndarray:
    """(N, 3) in LPS -> (N, 3) in the axes of glTF: x is the patient's left, y superior, z anterior."""
    left, posterior, superior = vectors.T
    return np.stack([left, superior, -posterior], axis=1)


def _export(mesh: Mesh, vertices: np.ndarray, kind: str, note: str) -> bytes:
    import trimesh

    if kind == "glb":
        vertices = gltf_axes(mesh.vertices / 1000)
    solid = trimesh.Trimesh(vertices, mesh.faces, process=False)
    if kind == "obj":
        return str(solid.export(file_type="obj", header=note, digits=6, include_normals=False)).encode()
    data = solid.export(file_type=kind)
    assert isinstance(data, bytes)
    if kind == "ply":
        data = data.replace(b" 1.0\n", f" 1.0\ncomment {note}\n".encode(), 1)
    return data


def _write_3mf(vertices: np.ndarray, faces: np.ndarray, note: str, path: Path) -> None:
    """3D Manufacturing Format, core specification 1.3: one object with one mesh, in millimetres."""
    corners = "".join(f'<vertex x="{x:.5f}" y="{y:.5f}" z="{z:.5f}"/>' for x, y, z in vertices.tolist())
    triangles = "".join(f'<triangle v1="{a}" v2="{b}" v3="{c}"/>' for a, b, c in faces.tolist())
    model = (
        '<?xml version="1.0" encoding="UTF-8"?>\n<model unit="millimeter" xml:lang="en-US" '
        'xmlns="http://schemas.microsoft.com/3dmanufacturing/core/2015/02">'
        f'<metadata name="Title">implant</metadata><metadata name="Description">{note}</metadata>'
        f'<resources><object id="1" type="model" name="implant"><mesh><vertices>{corners}</vertices>'
        f"<triangles>{triangles}</triangles></mesh></object></resources>"
        '<build><item objectid="1"/></build></model>\n'
    )
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        files = {"[Content_Types].xml": TYPES, "_rels/.rels": RELATIONS, "3D/3dmodel.model": model}
        for name, text in files.items():  # ZipInfo has a fixed time, so the same mesh gives the same bytes
            archive.writestr(ZipInfo(name), text, ZIP_DEFLATED)
