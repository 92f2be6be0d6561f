"""Variational diffusion models whose likelihood can be trusted."""

__version__ = "0.1.0"
