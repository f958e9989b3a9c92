"""What `import langevin` gives, and what it costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import langevin

ALSO_CALLED = {"SafeStableDiffusionSafetyChecker": "StableDiffusionSafetyChecker"}  # by checkpoints
HEAVY = ("transformers", "accelerate", "huggingface_hub", "diffusers", "peft", "datasets", "typer", "rich", "scipy")


def modules_after(code: str) -> set[str]:
    """Top-level modules that are loaded in a fresh process after ``code``."""
    code += "; import sys; print(*{name.split('.')[0] for name in sys.modules})"
    out = subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True, text=True)
    return set(out.stdout.split())


@pytest.mark.parametrize("name", langevin.__all__)
def test_every_public_name_is_there_under_its_own_name(name):
    value = getattr(langevin, name)
    assert value.__name__ == ALSO_CALLED.get(name, name)
    assert value.__doc__, f"{name} has no docstring"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="StableDifusion"):
        langevin.StableDifusion  # noqa: B018


def test_import_langevin_imports_no_library():
    assert not modules_after("import langevin") & {"torch", "numpy", "PIL", *HEAVY}


def test_importing_a_pipeline_imports_nothing_heavy_beside_torch():
    loaded = modules_after("from langevin import StableDiffusionPipeline")
    assert "torch" in loaded
    assert not loaded & set(HEAVY)


def test_the_library_never_imports_the_reference():
    for path in Path(langevin.__file__).parent.rglob("*.py"):
        text = path.read_text()
        assert "import diffusers" not in text, path
        assert "from diffusers" not in text, path
