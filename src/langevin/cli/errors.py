"""How the command line fails: one line on stderr, exit code 2 for bad usage and 1 for everything else."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup


class BadUsage(ValueError):
    """The command was called in a way that cannot work; exit code 2."""


class Failure(RuntimeError):
    """What was asked for could not be done; exit code 1."""


# Controls of both sets, line and paragraph separators, halves of letters, and what turns the direction of writing.
_HARMFUL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufff9-\ufffb]"
)


def harmless(text: str) -> str:
    """Text from a file for the terminal: what could command it, or show other letters than there are, is spelt out.

    Line ends and tabs stay. JSON stays JSON.
    """
    return _HARMFUL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def say(text: str) -> None:
    """A result, on stdout."""
    typer.echo(harmless(text))


def one_line(error: BaseException) -> str:
    """What an exception says, as one line."""
    if hasattr(error, "format_message"):  # click's own
        text = error.format_message()
    elif isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{error.strerror}: {error.filename}"
    else:
        text = str(error)
    text = harmless(" ".join(text.split()))
    expected = isinstance(error, (ValueError, OSError, RuntimeError)) or hasattr(error, "format_message")
    if text and expected:
        return text
    return f"{type(error).__name__}: {text} (LANGEVIN_DEBUG=1 shows where)".replace(":  (", " (")


def tell(text: str) -> None:
    """A remark for people, on stderr, so that stdout holds results only."""
    typer.echo(harmless(text), err=True)


def _show_warning(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """A warning in one line, as remarks are; where in the code it came from concerns nobody here."""
    tell(f"langevin: {' '.join(str(message).split())}")


class Group(TyperGroup):
    """A command group whose commands raise ordinary exceptions. LANGEVIN_DEBUG=1 lets them through."""

    def main(self, args: Sequence[str] | None = None, **options: Any) -> Any:  # type: ignore[override]
        options["standalone_mode"] = False
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings(
                    "ignore", message=".*decompression bomb"
                )  # what matters of it is said in a line
                warnings.showwarning = _show_warning
                code = super().main(args, **options)
        except (KeyboardInterrupt, typer.Abort):
            code = 130
        except Exception as error:
            if os.environ.get("LANGEVIN_DEBUG", "") not in ("", "0"):
                raise
            tell(f"langevin: {one_line(error)}")
            code = 2 if isinstance(error, BadUsage) else getattr(error, "exit_code", 1)
        if code == 130:
            tell("langevin: interrupted")
        sys.exit(code if isinstance(code, int) else 0)
