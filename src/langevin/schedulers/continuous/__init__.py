"""Solvers for networks that are told a continuous time or σ itself, and know no training timesteps."""
