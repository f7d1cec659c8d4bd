"""The smoothest surface that still separates the voxels of a mask from the others: one without terraces.

Marching cubes puts each vertex midway between a voxel inside and its neighbour outside, and the surface is a staircase.
The true surface crosses the same grid edges, but not all midway. So each vertex slides along its edge, never past a
voxel's centre, until the surface bends least. It encloses the same voxels' centres as before, no vertex moves by more
than half a voxel, and each triangle stays in its cell, where it meets no other. Whitaker (2000, "Reducing aliasing
artifacts in iso-surfaces of binary volumes") smooths a level set within the same bounds; here the vertices move, and
curvature is free: a sphere stays a sphere.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array, csr_array, eye_array

from pcdiff.geometry.directions import unit
from pcdiff.geometry.mesh import Mesh

REACH = 0.49  # voxels that a vertex slides; at 0.5 triangles collapse at a voxel's centre
ROUNDS = (4, 10, 40, 60, 80)  # steps; after each round normals and creases are measured again
MAX_WIDENING = 5.0  # thick slices make wide terraces, which take more steps
NORMAL_ROUNDS = 8  # the normals of a staircase say little before they are averaged
CREASE = 0.03  # voxels: where the surface still bends more after a round it has an edge, which is kept
LAST = 8  # steps of a round without creases, few enough to take only the thorns off an edge
PULL = 1e-4  # towards midway, for vertices that nothing else holds


def smoothest(mesh: Mesh, step: np.ndarray, lowest: np.ndarray, highest: np.ndarray) -> Mesh:
    """The mesh with vertices that slide along grid edges until the surface bends least.

    Bending is the distance of a vertex from the middle of its neighbours along the normal; the sum of its squares is
    least where a thin plate would come to rest.

    Args:
        mesh: Of a mask, by marching cubes at 0.5.
        step: (V, 3) mm along the edge of each vertex, outward, one voxel long; zero for a vertex on no edge.
        lowest: (V,) voxels: how far a vertex may slide inward, negative, at least -`REACH`.
        highest: (V,) voxels: how far outward, at most `REACH`.
    """
    lengths = np.linalg.norm(step, axis=1)
    voxel = lengths.max()
    widening = min(MAX_WIDENING, voxel / lengths[lengths > 0].min())
    average = _average(mesh)
    difference = csr_array(eye_array(len(step), dtype=np.float32) - average)
    row = np.repeat(np.arange(len(step)), np.diff(difference.indptr))
    along, slide = (step / voxel).astype(np.float32)[difference.indices], np.zeros(len(step), np.float32)
    stairs = difference @ ((mesh.vertices - mesh.vertices.mean(0)) / voxel).astype(np.float32)
    for number, steps in enumerate((*ROUNDS, LAST)):
        normals = _slid(mesh, step, slide).vertex_normals.astype(np.float32)
        for _ in range(NORMAL_ROUNDS):
            normals = unit(normals + average @ normals)
        at_rest = np.einsum("nx,nx->n", normals, stairs)
        change = difference.data * np.einsum("nx,nx->n", normals[row], along)
        bending = csr_array((change, difference.indices, difference.indptr), difference.shape)
        if 0 < number < len(ROUNDS):
            weight = 1 / np.sqrt(1 + ((bending @ slide + at_rest) / CREASE) ** 2)
            bending.data *= weight[row]
            at_rest *= weight
        slide = _least_squares(bending, at_rest, slide, (lowest, highest), round(steps * widening))
    return _slid(mesh, step, slide)


def _slid(mesh: Mesh, step: np.ndarray, slide: np.ndarray) -> Mesh:
    return Mesh(mesh.vertices + slide[:, None] * step, mesh.faces)


def _average(mesh: Mesh) -> csr_array:
    """(V, V) sparse: the mean over the neighbours of each vertex."""
    faces = mesh.faces.astype(np.int32)  # products with int64 indices take a third longer
    start, end = faces.ravel(), np.roll(faces, -1, axis=1).ravel()  # a closed mesh has each edge both ways
    count = len(mesh.vertices)
    degree = np.bincount(start, minlength=count)
    return csr_array(coo_array(((1 / degree[start]).astype(np.float32), (start, end)), (count, count)))


def _least_squares(
    matrix: csr_array, offset: np.ndarray, start: np.ndarray, bounds: tuple[np.ndarray, np.ndarray], steps: int
) -> np.ndarray:
    """(V,) float32: the x within bounds where |matrix x + offset| is about least.

    Accelerated projected gradient (Beck and Teboulle 2009, FISTA; restarted as by O'Donoghue and Candes 2015), with a
    step for each unknown: the row sums of |matrix|' |matrix| bound the curvature.
    """
    size = abs(matrix)
    pace = (1 / (size.T @ size.sum(axis=1) + PULL)).astype(np.float32)
    transposed = csr_array(matrix.T)
    low, high = (bound.astype(np.float32) for bound in bounds)
    x, ahead, momentum = start, start, 1.0
    for _ in range(steps):
        gradient = transposed @ (matrix @ ahead + offset) + np.float32(PULL) * ahead
        new = np.clip(ahead - pace * gradient, low, high)
        if np.dot(ahead - new, new - x) > 0:
            momentum = 1.0
        after = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = new + np.float32((momentum - 1) / after) * (new - x)
        x, momentum = new, after
    return x
