"""``langevin prompt``: how a prompt is understood, without making a picture of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import typer

from langevin.cli.errors import BadUsage, harmless, tell

_SHOWN = 12
"""States of an edited prompt that are printed; the rest is counted."""
_CONFIG = "text_encoder/config.json"


def show(prompt: str, *, model: str, grammar: str, steps: int, as_json: bool) -> None:
    """Print the tokens of a prompt with their weights and chunks, at each step where editing changes it."""
    from langevin.prompts.tree import PromptSyntaxError

    if prompt == "-":
        prompt = sys.stdin.read().removesuffix("\n")
    try:
        understood = explain(prompt, model=model, grammar=grammar, steps=steps)
    except PromptSyntaxError as error:  # its lines show where, so they stay lines
        tell(f"langevin: {error}")
        raise typer.Exit(2) from None
    if as_json:
        typer.echo(json.dumps(understood, indent=2, ensure_ascii=False))
    else:
        _print(understood)


def explain(prompt: str, *, model: str, grammar: str, steps: int) -> dict[str, Any]:
    """What ``--json`` prints.

    Returns:
        ``{"prompt", "grammar", "room", "steps", "schedule": [{"from", "prompt", "parts": […]}]}``. A part is
        ``{"kind": "text", "weight", "chunks": [[{"text", "tokens", "ids", "weight"}, …], …]}``, words in chunks, or
        ``{"kind": "blend", "weight", "normalise", "parts": […]}``. Where the prompt names LoRAs there is ``"loras"``
        too, their weights by name.

    Raises:
        BadUsage: an unknown grammar, or a model without a tokenizer.
        PromptSyntaxError: the grammar does not allow the prompt.
    """
    from langevin.prompts.editing import prompt_schedule
    from langevin.prompts.loras import take_loras
    from langevin.prompts.weighting import GRAMMARS

    if grammar not in GRAMMARS:
        raise BadUsage(f"--grammar {grammar!r} is not one of: {', '.join(GRAMMARS)}")
    try:
        text, loras = take_loras(prompt, grammar)
    except ValueError as error:
        raise BadUsage(str(error)) from None
    schedule = prompt_schedule(text, steps, grammar)
    trees = [GRAMMARS[grammar].parse(text) for _, text in schedule]
    encoder = load_encoder(model)
    states = [
        {"from": first, "prompt": text, "parts": _parts(tree, encoder, grammar)}
        for (first, text), tree in zip(schedule, trees, strict=True)
    ]
    named = {"loras": loras} if loras else {}
    return {"prompt": prompt, "grammar": grammar, "room": encoder.room, "steps": steps, **named, "schedule": states}


def load_encoder(model: str) -> Any:
    """The tokenizer of a model and what is known of its text encoder, whose weights are not read."""
    from langevin.checkpoints import folders, transformers_parts
    from langevin.checkpoints.files import read_json
    from langevin.cli.choices import busy
    from langevin.prompts.encoder import PromptEncoder

    def wanted(names: list[str], fetch: Any) -> list[str]:
        return [n for n in names if n == "model_index.json" or n.startswith("tokenizer/") or n == _CONFIG]

    with busy(f"Loading {model}"):
        root = folders.resolve(model, choose=wanted)
        listed = read_json(folders.inside(root, "model_index.json")).get("tokenizer")
        if not (isinstance(listed, list) and listed and listed[-1]):
            raise BadUsage(f"--model {model} has no tokenizer; it takes no prompt")
        tokenizer = transformers_parts.load(transformers_parts.find_class(listed[-1]), root, "tokenizer")
        config = read_json(folders.inside(root, _CONFIG))
        return PromptEncoder(tokenizer, SimpleNamespace(config=SimpleNamespace(**config)))


def _parts(tree: Any, encoder: Any, grammar: str) -> list[dict[str, Any]]:
    """The parts of a tree, each with its weight."""
    from langevin.prompts.chunks import chunk_text
    from langevin.prompts.tree import Text
    from langevin.prompts.weighting import GRAMMARS

    parts = []
    for part, weight in zip(tree.parts, tree.weights, strict=True):
        if isinstance(part, Text):
            arithmetic = GRAMMARS[grammar].arithmetic
            chunks = chunk_text(encoder, part, arithmetic.part, words=arithmetic.words).tokens
            words = [list(_words(chunk, encoder)) for chunk in chunks]
            parts.append({"kind": "text", "weight": weight, "chunks": words})
        else:
            inside = _parts(part, encoder, grammar)
            parts.append({"kind": "blend", "weight": weight, "normalise": part.normalise, "parts": inside})
    return parts


def _words(chunk: Sequence[Any], encoder: Any) -> Iterator[dict[str, Any]]:
    """The tokens of a chunk, word by word."""
    pieces = encoder.pieces([token.id for token in chunk])
    begin = 0
    for k, token in enumerate(chunk):
        last = k + 1 == len(chunk) or chunk[k + 1][1:] != token[1:]
        if last or encoder.ends_word(pieces, k):
            ids = [one.id for one in chunk[begin : k + 1]]
            text = encoder.decode(ids).strip()
            yield {"text": text, "tokens": pieces[begin : k + 1], "ids": ids, "weight": round(token.weight, 6)}
            begin = k + 1


# -- for people


def _print(understood: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False, soft_wrap=True)
    schedule = understood["schedule"]
    if loras := understood.get("loras"):
        console.print(f"LoRA: {', '.join(f'{name} {weight}' for name, weight in loras.items())}", markup=False)
    for state in schedule[:_SHOWN]:
        if len(schedule) > 1:
            console.print(f"[bold]from step {state['from'] + 1} of {understood['steps']}[/bold]")
        for part in state["parts"]:
            _print_part(console, part, understood["room"], len(state["parts"]) > 1, "")
    if len(schedule) > _SHOWN:
        console.print(f"… and {len(schedule) - _SHOWN} more times another; --json shows all")


def _print_part(console: Any, part: dict[str, Any], room: int, weighed: bool, indent: str) -> None:
    if part["kind"] == "blend":
        made = "weights made to sum to 1" if part["normalise"] else "weights as they are"
        console.print(f"{indent}blend of {len(part['parts'])}, {made}{_times(part['weight'], weighed)}")
        for inside in part["parts"]:
            _print_part(console, inside, room, True, indent + "  ")
        return
    for number, chunk in enumerate(part["chunks"], 1):
        count = sum(len(word["ids"]) for word in chunk)
        title = f"chunk {number} of {len(part['chunks'])}: " if len(part["chunks"]) > 1 else ""
        some = f"{count} token{'s' * (count != 1)} of {room}"
        console.print(f"{indent}[dim]{title}{some}{_times(part['weight'], weighed)}[/dim]")
        console.print(_line(chunk, indent + "  "))


def _times(weight: float, shown: bool) -> str:
    return f", times {weight:g}" if shown else ""


def _line(chunk: list[dict[str, Any]], indent: str) -> Any:
    """A chunk's words: dots between the tokens of one, and the weight behind all that share it."""
    from rich.text import Text

    line = Text(indent)
    for n, word in enumerate(chunk):
        weight = word["weight"]
        plain = [harmless(token.removesuffix("</w>").removeprefix("▁")) for token in word["tokens"]]
        if not all(token.isascii() for token in plain):  # bytes of letters, in the vocabulary's spelling of bytes
            plain = [harmless(word["text"])]
        line.append(" " if n else "").append("·".join(plain), colour(weight))
        if weight != 1 and (n + 1 == len(chunk) or chunk[n + 1]["weight"] != weight):
            line.append(f" ×{weight:.3g}", f"dim {colour(weight)}")
    return line if chunk else line.append("(empty)", "dim")


def colour(weight: float) -> str:
    """Green, yellow, red for more and more; cyan and blue for less; struck out for nothing."""
    if weight == 1:
        return ""
    if weight > 1:
        return "green" if weight <= 1.2 else "yellow" if weight <= 1.5 else "bold red"
    return "cyan" if weight >= 0.75 else "blue" if weight > 0 else "blue strike"
