"""Solvers over codes instead of numbers: noise is the wrong code, or none."""
