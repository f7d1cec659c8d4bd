"""Screened Poisson reconstruction with Open3D: an optional backend with the same contract as `spectral`."""

from __future__ import annotations

import numpy as np

from pcdiff import install_hint
from pcdiff.errors import InputError
from pcdiff.geometry.points import PointCloud
from pcdiff.geometry.volume import Volume

SCALE = 1.1  # Open3D's default: side of the octree's cube relative to the points' extent


def solve(points: PointCloud, skull: Volume, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Indicator of the solid that the points enclose: (high - low) float32, exactly 0 or 1, see `spectral.solve`.

    Screened Poisson surface (Kazhdan and Hoppe, ACM TOG 2013) with octree cells of about one voxel; a voxel is inside
    if its centre lies in the mesh. Raises InputError if open3d, or a system library that it loads, is missing.
    """
    try:
        import open3d as o3d
    except (ImportError, OSError) as error:  # OSError: open3d is installed, but libusb-1.0 or libGL is not
        raise InputError(
            f"backend 'screened' needs open3d, which cannot be imported ({str(error).splitlines()[0]}); run "
            f"{install_hint('open3d')} and, on Debian, apt install libusb-1.0-0 libgl1 libgomp1, "
            "or use backend 'spectral'"
        ) from error

    cloud = o3d.geometry.PointCloud()
    cloud.points = o3d.utility.Vector3dVector(points.points)
    cloud.normals = o3d.utility.Vector3dVector(points.normals)
    cells = SCALE * np.ptp(points.points, axis=0).max() / skull.spacing.min()
    depth = int(np.clip(np.ceil(np.log2(cells)), 4, 10))
    mesh, _ = o3d.geometry.TriangleMesh.create_from_point_cloud_poisson(cloud, depth=depth, scale=SCALE)
    scene = o3d.t.geometry.RaycastingScene()
    scene.add_triangles(o3d.t.geometry.TriangleMesh.from_legacy(mesh))

    shape = tuple(int(n) for n in high - low)
    values = np.empty(shape, np.float32)
    plane = np.stack(np.meshgrid(*[np.arange(n) for n in shape[1:]], indexing="ij"), -1) + low[1:]  # (J, K, 2)
    for i in range(shape[0]):  # by planes: all voxel centres together would need more memory than the solve
        index = np.concatenate([np.full((*shape[1:], 1), low[0] + i), plane], axis=-1).astype(float)
        values[i] = scene.compute_occupancy(o3d.core.Tensor(skull.to_mm(index).astype(np.float32))).numpy()
    return values
