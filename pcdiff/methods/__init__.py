"""The methods that design an implant, behind one interface."""
