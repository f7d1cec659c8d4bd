"""Volumes, points and meshes with their coordinate frames, in patient millimetres (LPS)."""
