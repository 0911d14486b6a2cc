"""A page to play in: color for pictures, walks among fruit, and what all runs reached."""
