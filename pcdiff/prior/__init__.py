"""The statistical shape prior of the healthy skull: built from heads, fitted to a defective skull."""
