"""A scene as a GLB file (glTF 2.0), for augmented reality and viewers: skull and implant by name, in metres."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pcdiff.errors import InputError
from pcdiff.files import written_beside
from pcdiff.geometry.mesh_files import gltf_axes
from pcdiff.report.scene import Scene


def write_glb(scene: Scene, path: Path) -> None:
    """Writes skull and implant as two meshes with their colours, as they stand in the patient.

    The surfaces are those of the report, simplified for display. The same scene gives the same bytes.

    Raises:
        InputError: another suffix than .glb, or a file that cannot be written.
    """
    import trimesh

    if path.suffix.lower() != ".glb":
        raise InputError(f"{path}: expected a name that ends in .glb, got {path.suffix or 'none'}; choose such a name")
    whole = trimesh.Scene()
    for surface in (scene.skull, scene.implant):
        shape = surface.shape
        colour = np.asarray(shape.colour, float).reshape(-1, 3).mean(axis=0)  # linear, as glTF has it
        material = trimesh.visual.material.PBRMaterial(
            name=surface.name, baseColorFactor=[*colour, 1.0], metallicFactor=0.0, roughnessFactor=0.6
        )
        mesh = trimesh.Trimesh(
            gltf_axes(shape.vertices / 1000),
            shape.faces,
            vertex_normals=gltf_axes(shape.normals),
            visual=trimesh.visual.TextureVisuals(material=material),
            process=False,
        )
        whole.add_geometry(mesh, node_name=surface.name, geom_name=surface.name)
    data = whole.export(file_type="glb", include_normals=True)
    assert isinstance(data, bytes)
    with written_beside(path) as part:
        part.write_bytes(data)
