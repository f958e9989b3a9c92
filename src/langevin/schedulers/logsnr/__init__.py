"""Solvers that count in λ = log(α/σ), half the log signal-to-noise ratio."""
