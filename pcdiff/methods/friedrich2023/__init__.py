"""The method of Friedrich et al. (MICCAI 2023), faithful enough to load its checkpoints."""
