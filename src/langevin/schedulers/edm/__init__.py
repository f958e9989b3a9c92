"""Solvers for preconditioned networks, told a function of σ, on levels that are a law of σ."""
