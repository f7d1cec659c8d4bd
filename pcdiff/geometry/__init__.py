"""Volumes, points and meshes that carry their frame, in patient millimetres (LPS)."""
