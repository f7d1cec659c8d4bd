"""The model of Friedrich et al. (MICCAI 2023): its checkpoints in, its numbers out."""
