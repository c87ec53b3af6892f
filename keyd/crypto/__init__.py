"""The only door to algorithms. Nothing else in keyd imports a cryptographic library."""
