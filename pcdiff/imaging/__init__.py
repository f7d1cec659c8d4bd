"""A head scan becomes a mask of the skull, and masks become files again."""
