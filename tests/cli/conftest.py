"""Fixtures shared by the tests of the command line."""

from __future__ import annotations

import pytest


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function that runs a command in a fresh folder, and holds its exit code against ``code``."""
    from typer.testing import CliRunner

    from langevin.cli.app import app

    monkeypatch.chdir(tmp_path)

    def call(*arguments, code=0):
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        assert result.exit_code == code, (result.output, result.stderr, result.exception)
        return result

    return call
