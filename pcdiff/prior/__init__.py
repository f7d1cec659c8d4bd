"""The statistical shape model of the healthy skull: built from heads, fitted to a defective skull."""
