"""An occupancy network: corrects the shape model where bone is not single-valued along a ray."""
