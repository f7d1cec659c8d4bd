"""Training of the networks of Friedrich et al. (2023)."""
