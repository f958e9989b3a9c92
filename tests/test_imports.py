"""Which way imports go, and how they are written."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import langevin

SOURCE = Path(langevin.__file__).parent
UPPER = ("pipelines", "guiders", "prompts", "codecs", "schedulers", "models", "media", "loop", "denoiser", "outputs")


def imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    """Modules that a file imports: (name, how many dots before it, at the top of the file)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield f"{node.module or ''}.{alias.name}", node.level, node in tree.body
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, 0, node in tree.body


def test_modules_are_named_in_full():
    places = [path for path in SOURCE.rglob("*.py") if path.parent.name != "schedulers"]
    assert not [(path.name, name) for path in places for name, dots, _ in imports(path) if dots]


def test_checkpoints_know_nothing_above_them_and_hide_no_circle():
    for path in (SOURCE / "checkpoints").glob("*.py"):
        for name, _, at_top in imports(path):
            assert not name.startswith(tuple(f"langevin.{room}" for room in (*UPPER, "zoo", "cli"))), (path.name, name)
            assert at_top or not name.startswith("langevin"), f"{path.name} imports {name} inside a function"
