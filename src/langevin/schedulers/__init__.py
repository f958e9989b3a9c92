"""Schedulers: a noise schedule, a spacing and a solver each. See ``base.py`` for the interface."""
