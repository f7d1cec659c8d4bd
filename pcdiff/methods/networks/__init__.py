"""Learned baselines: networks of the field that predict missing bone from bone alone, without the shape model."""
