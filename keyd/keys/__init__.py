"""Keys: their levels and blocks (ground floor), and what holds them (middle floor)."""
