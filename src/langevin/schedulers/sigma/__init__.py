"""Solvers that count in σ, where x = x0 + σ·ε."""
