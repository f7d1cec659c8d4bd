"""Diffusion of the points of a surface: they move along its normals, read the skull where they are, and are samples."""
