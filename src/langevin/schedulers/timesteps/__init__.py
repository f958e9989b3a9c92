"""Solvers that count in training timesteps, 0 (least noise) to T-1."""
