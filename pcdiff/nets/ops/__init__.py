"""Point operations, batched, features channels first.

Each has a version in plain torch; on CUDA the same names run on pytorch3d or Triton where they are installed.
"""

from pcdiff.nets.ops.gather import gather
from pcdiff.nets.ops.interpolate import three_nn_weights
from pcdiff.nets.ops.neighbours import ball_query, furthest_point_sample, knn

__all__ = [
    "ball_query",
    "furthest_point_sample",
    "gather",
    "knn",
    "three_nn_weights",
]
