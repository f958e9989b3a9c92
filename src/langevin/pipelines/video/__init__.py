"""Pipelines that make videos."""
