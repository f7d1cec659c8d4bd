"""The occupancy network: it corrects the shape model where bone is not single-valued along rays from the centre."""
