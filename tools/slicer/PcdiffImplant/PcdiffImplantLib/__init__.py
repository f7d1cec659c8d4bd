"""What the panel is made of; each file is one idea and can be used without the others."""
