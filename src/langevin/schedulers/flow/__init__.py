"""Solvers on straight lines, where x = (1 - σ)·x0 + σ·ε."""
