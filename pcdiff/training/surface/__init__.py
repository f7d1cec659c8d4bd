"""Training of the diffusion of a surface's points."""
