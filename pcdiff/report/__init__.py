"""Pictures, 3D scenes and the report of a case."""
