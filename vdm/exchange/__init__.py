"""Import and export of models."""
