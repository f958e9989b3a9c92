"""Pictures of the family made again from their settings, by the command line."""

from __future__ import annotations

from langevin import DiffusionPipeline


def assert_made_again(pipe, folder, *args, row=0, **call):
    """``langevin again`` makes picture ``row`` of a call anew, from a folder and the settings it carries."""
    from typer.testing import CliRunner

    from langevin.cli.app import app

    pipe.save_pretrained(folder / "model")
    read = DiffusionPipeline.from_pretrained(folder / "model")
    read.set_progress_bar_config(disable=True)
    picture = folder / "made.png"
    read(*args, **call).images[row].save(picture)
    result = CliRunner().invoke(app, ["again", str(picture), "--out", str(folder / "again.png"), "--yes"])
    assert result.exit_code == 0, result.output
    assert "identical: all" in result.output or "same but for rounding" in result.output
