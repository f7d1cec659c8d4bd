"""Training of the volumetric U-Net on virtual craniotomies in registered, mixed and deformed heads."""
