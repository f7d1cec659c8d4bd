"""The volumetric U-Net: it predicts missing bone on a lattice around each defect."""
