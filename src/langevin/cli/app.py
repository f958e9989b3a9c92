"""The commands and their options. What they do is in the modules they call, which import torch only when needed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from langevin.cli.errors import Group
from langevin.signatures import also_takes

DEFAULT_MODEL = "langevin/shapes"
INSTRUCT_MODEL, INPAINTING_MODEL = "langevin/shapes-instruct", "langevin/shapes-inpainting"
CONTROL_NET = "langevin/shapes-outline"
CASCADE = ("cascade", "every_size")  # what commands that work on a picture do not take
CLIP = "langevin/shapes-clip"

app = typer.Typer(
    cls=Group,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Pictures from prompts with diffusion models. **langevin generate** makes them, from the model in "
    "the box or any diffusers checkpoint; each picture carries the settings that made it.",
)

Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; the fastest there is by default")]
Force = Annotated[bool, typer.Option("--force", "-f", help="overwrite the file that --out names")]


def _version(wanted: bool) -> None:
    if wanted:
        from langevin import __version__

        typer.echo(f"langevin {__version__}")
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="show the version and exit")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def generate(
    prompt: Annotated[str | None, typer.Argument(help='what to paint; "-" reads it from standard input')] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="a file, or a folder that exists")] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="name in the box, folder, or hub id")] = DEFAULT_MODEL,
    negative: Annotated[str | None, typer.Option("--negative", help="what to keep away from")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="more are slower and finer [default: the model's]")] = None,
    guidance: Annotated[float | None, typer.Option(help="how strictly to follow the prompt; 1 is off")] = None,
    scheduler: Annotated[str | None, typer.Option(help="class name, or short: euler, ddim, pndm, ddpm, …")] = None,
    spacing: Annotated[str | None, typer.Option(help="which noise levels to visit: karras, sgm_uniform, …")] = None,
    grammar: Annotated[
        str | None, typer.Option(help="how prompts are read: compel, a1111, comfyui or none [default: compel]")
    ] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels, or one number for a square")] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="pictures; each has a seed one higher")] = 1,
    seed: Annotated[int | None, typer.Option(min=0, help="same seed, same picture [default: drawn by lot]")] = None,
    lora: Annotated[
        list[str] | None, typer.Option(help="FILE or FILE:WEIGHT of a LoRA, folder or hub id too; may be given again")
    ] = None,
    device: Device = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16")] = None,
    force: Force = False,
    cascade: Annotated[
        list[str] | None, typer.Option(help="instead of --model, a stage of a cascade; once for each of two or three")
    ] = None,
    every_size: Annotated[
        bool, typer.Option("--every-size", help="save the pictures of a cascade's first stages too")
    ] = False,
) -> None:
    """Make pictures and say where they are.

    The prompt is left out for models that take none. Without --out, a picture is named after its prompt and seed;
    with --count, --out circle.png gives circle-1.png, circle-2.png, … No file is overwritten: where a name is
    taken, the next free number is added, unless --force is given.

    With --cascade, models make small pictures and then larger ones from them; one of them is loaded at a time. Those
    whose folder is not here come from the hub.

    Example: langevin generate "a red circle" --steps 20 --seed 7 --out circle.png
    Example: langevin generate "a corgi" --cascade DeepFloyd/IF-I-XL-v1.0 --cascade DeepFloyd/IF-II-L-v1.0
    """
    from langevin.cli.generate import generate as run

    run(
        prompt=prompt,
        out=out,
        model=model,
        negative=negative,
        steps=steps,
        guidance=guidance,
        scheduler=scheduler,
        spacing=spacing,
        grammar=grammar,
        size=size,
        count=count,
        seed=seed,
        lora=lora,
        device=device,
        dtype=dtype,
        force=force,
        cascade=cascade or (),
        every_size=every_size,
    )


Picture = Annotated[Path, typer.Argument(help="the picture's file")]
Prompt = Annotated[str, typer.Argument(help='what to do or paint; "-" reads it from standard input')]
Strength = Annotated[float | None, typer.Option(min=0, max=1, help="how far to go from the picture")]


@app.command()
@also_takes(generate, CASCADE, evaluate=True)
def edit(
    picture: Picture,
    prompt: Prompt,
    model: Annotated[str, typer.Option("--model", "-m", help="name in the box, folder, or hub id")] = INSTRUCT_MODEL,
    strength: Strength = None,
    image_guidance: Annotated[float | None, typer.Option(help="how strictly to keep to the picture; 1 is off")] = None,
    **options: Any,
) -> None:
    """Change a picture.

    Models made for it (InstructPix2Pix) do what an instruction says. Others paint what the prompt describes, beginning
    from the picture: then --strength says how far to go.

    Example: langevin edit circle.png "make the circle blue" --out blue.png
    """
    from langevin.cli.tasks import edit as run

    run(picture, prompt=prompt, model=model, strength=strength, image_guidance=image_guidance, **options)


@app.command()
@also_takes(generate, CASCADE, evaluate=True)
def inpaint(
    picture: Picture,
    prompt: Prompt,
    mask: Annotated[Path | None, typer.Option(help="a picture that is white where to paint")] = None,
    box: Annotated[str | None, typer.Option(help="LEFT,TOP,RIGHT,BOTTOM in pixels, instead of a mask")] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="name in the box, folder, or hub id")] = INPAINTING_MODEL,
    strength: Strength = None,
    keep: Annotated[bool, typer.Option(help="leave every pixel outside the mask exactly as it is")] = True,
    crop: Annotated[
        int | None, typer.Option(min=0, help="work on the mask's surroundings only, with so many pixels around it")
    ] = None,
    **options: Any,
) -> None:
    """Paint a part of a picture anew. Text-to-image models can do it too.

    Example: langevin inpaint scene.png "a red circle left of a blue star" --box 36,16,64,48 --out new.png
    """
    from langevin.cli.tasks import inpaint as run

    run(
        picture,
        prompt=prompt,
        mask=mask,
        box=box,
        model=model,
        strength=strength,
        keep=keep,
        crop=crop,
        **options,
    )


@app.command()
@also_takes(generate, CASCADE, evaluate=True)
def control(
    picture: Picture,
    prompt: Prompt,
    net: Annotated[str, typer.Option(help="control network: name in the box, folder, or hub id")] = CONTROL_NET,
    scale: Annotated[float, typer.Option(help="how strongly it acts; 0 is off")] = 1.0,
    start: Annotated[float, typer.Option(min=0, max=1, help="share of the steps after which it begins")] = 0.0,
    stop: Annotated[float, typer.Option(min=0, max=1, help="share of the steps after which it ends")] = 1.0,
    guess: Annotated[bool, typer.Option("--guess", help="let it act on the prompt's side of guidance only")] = False,
    **options: Any,
) -> None:
    """Paint a prompt under a control picture, such as an outline (ControlNet).

    Example: langevin control outline.png "a red shape" --out painted.png
    """
    from langevin.cli.tasks import control as run

    run(picture, prompt=prompt, net=net, scale=scale, start=start, stop=stop, guess=guess, **options)


Model = Annotated[str, typer.Option("--model", "-m", help="name, folder, or hub id of a model made for it")]
Shown = Annotated[str, typer.Argument(help='what the picture shows; "-" reads it from standard input')]


@app.command()
@also_takes(generate, CASCADE, evaluate=True)
def upscale(
    picture: Picture,
    model: Model,
    prompt: Shown = "",
    noise: Annotated[
        int | None, typer.Option(min=0, help="added to the picture; more leaves more to the model")
    ] = None,
    window: Annotated[
        int | None, typer.Option(min=8, help="work in windows of so many latents, for large pictures; 64 is usual")
    ] = None,
    **options: Any,
) -> None:
    """Make a picture larger, with an upscaler: four times, or twice with a latent upscaler.

    Example: langevin upscale small.png "a white cat" --model stabilityai/stable-diffusion-x4-upscaler --out large.png
    """
    from langevin.cli.tasks import upscale as run

    run(picture, prompt=prompt, model=model, noise=noise, window=window, **options)


@app.command()
@also_takes(generate, ("prompt", "negative", "grammar", *CASCADE), evaluate=True)
def vary(picture: Picture, model: Model, **options: Any) -> None:
    """Make pictures like a picture, with a model that is told pictures instead of prompts.

    Example: langevin vary cat.png --model lambdalabs/sd-image-variations-diffusers --count 4 --out like.png
    """
    from langevin.cli.tasks import vary as run

    run(picture, model=model, **options)


@app.command()
@also_takes(generate, CASCADE, evaluate=True)
def depth(
    picture: Picture,
    prompt: Prompt,
    model: Model,
    map: Annotated[
        Path | None, typer.Option("--map", help="a grey picture, lighter is nearer; else the model estimates it")
    ] = None,
    strength: Strength = None,
    **options: Any,
) -> None:
    """Paint a picture anew, and keep how near everything is.

    Example: langevin depth room.png "a room of ice" --model stabilityai/stable-diffusion-2-depth --out ice.png
    """
    from langevin.cli.tasks import depth as run

    run(picture, prompt=prompt, model=model, map=map, strength=strength, **options)


@app.command()
@also_takes(generate, ("prompt", "negative", "grammar", "guidance", "size", "model", *CASCADE), evaluate=True)
def sound(
    model: Annotated[str, typer.Argument(help="name, folder, or hub id of a model of sound")],
    seconds: Annotated[float | None, typer.Option(min=0, help="how long, where the model can be asked")] = None,
    **options: Any,
) -> None:
    """Make sounds, saved as WAV files that carry the settings that made them.

    Example: langevin sound harmonai/maestro-150k --seconds 2 --out piano.wav
    """
    from langevin.cli.tasks import sound as run

    run(model, seconds=seconds, **options)


@app.command()
@also_takes(generate, CASCADE, evaluate=True)
def video(
    model: Annotated[str, typer.Argument(help="name, folder, or hub id of a model that makes videos")],
    prompt: Prompt,
    frames: Annotated[int | None, typer.Option(min=1, help="how long it is [default: the model's]")] = None,
    fps: Annotated[float | None, typer.Option(min=0.1, max=240, help="frames a second [default: 8]")] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="a video to begin from: MP4, GIF, WebP or animated PNG")
    ] = None,
    strength: Strength = None,
    **options: Any,
) -> None:
    """Make a video: from a prompt alone, or from a video and a prompt.

    The end of --out says in which form: .mp4 (needs pip install 'langevin[video]'), .gif, .webp or .png; WebP and PNG
    keep every pixel as it is.

    Example: langevin video damo-vilab/text-to-video-ms-1.7b "a panda eats bamboo" --frames 16 --out panda.mp4
    """
    from langevin.cli.tasks import video as run

    run(model=model, prompt=prompt, frames=frames, fps=fps, source=source, strength=strength, **options)


@app.command()
def score(
    picture: Picture,
    texts: Annotated[list[str], typer.Argument(help="what may be on it: one text or several")],
    model: Annotated[str, typer.Option("--model", "-m", help="a CLIP: name in the box, folder, or hub id")] = CLIP,
    json: Annotated[bool, typer.Option("--json", help="as JSON")] = False,
) -> None:
    """Say how well texts fit a picture, the best first.

    The model in the box says how likely a text is true, for pictures of its world. Others give a cosine, which tells
    texts apart and means nothing by itself.

    Example: langevin score circle.png "a red circle" "a blue circle" "a red square"
    """
    from langevin.cli.score import score as run

    run(picture, texts, model=model, as_json=json)


@app.command()
def prompt(
    prompt: Annotated[str, typer.Argument(help='the prompt; "-" reads it from standard input')],
    grammar: Annotated[
        str, typer.Option(help="compel, a1111, comfyui, or none, which takes all of it as text")
    ] = "compel",
    model: Annotated[
        str, typer.Option("--model", "-m", help="whose tokenizer: name, folder, or hub id")
    ] = DEFAULT_MODEL,
    steps: Annotated[int, typer.Option(min=1, help="of the run, for prompts that change on the way")] = 50,
    json: Annotated[bool, typer.Option("--json", help="as JSON")] = False,
) -> None:
    """Show how a prompt is understood: its tokens, their weights, and the chunks they are encoded in.

    Green, yellow and red weigh more than usual, cyan and blue less. Of a prompt that changes during the run, each
    state is shown with the step from which it holds. A mistake in the grammar is shown with a caret under it.

    Example: langevin prompt "a (red)1.3 circle and a [blue:green:0.5] square-"
    """
    from langevin.cli.prompt import show

    show(prompt, model=model, grammar=grammar, steps=steps, as_json=json)


@app.command()
def schedulers(json: Annotated[bool, typer.Option("--json", help="as JSON")] = False) -> None:
    """List the schedulers, with a line on each, and the spacings."""
    from langevin.cli.compare import show

    show(as_json=json)


@app.command()
def compare_schedulers(
    prompt: Annotated[str | None, typer.Argument(help="what to paint; left out for models that take none")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="the sheet's file, or a folder")] = Path("schedulers.png"),
    model: Annotated[str, typer.Option("--model", "-m", help="name in the box, folder, or hub id")] = DEFAULT_MODEL,
    steps: Annotated[str, typer.Option(help="numbers of steps, one column each")] = "5,10,20",
    schedulers: Annotated[str | None, typer.Option(help="names, with commas between [default: all]")] = None,
    spacing: Annotated[str | None, typer.Option(help="for all of them, instead of the model's own")] = None,
    guidance: Annotated[float | None, typer.Option(help="how strictly to follow the prompt; 1 is off")] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="pictures for each cell; the first is shown")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="of each cell's first picture")] = 0,
    device: Device = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16")] = None,
    force: Force = False,
) -> None:
    """Paint a prompt with every scheduler at several numbers of steps, on one sheet.

    With a model in the box, each cell says how many of its pictures show what the prompt asks for.

    Example: langevin compare-schedulers "a red circle" --steps 5,10,20 --schedulers ddim,euler,unipc
    """
    from langevin.cli.compare import compare

    compare(
        prompt=prompt,
        out=out,
        model=model,
        steps=steps,
        names=schedulers,
        spacing=spacing,
        guidance=guidance,
        count=count,
        seed=seed,
        device=device,
        dtype=dtype,
        force=force,
    )


@app.command()
def models(json: Annotated[bool, typer.Option("--json", help="as JSON")] = False) -> None:
    """List the models in the box and in the local hub cache."""
    from langevin.cli.shelf import show

    show(as_json=json)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def train(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="what to train, such as text-to-image; --help lists them")] = "--help",
) -> None:
    """Train on your own pictures: text-to-image, lora, dreambooth, textual-inversion, controlnet, instruct-pix2pix or
    unconditional.

    Flags are those of the original's scripts; langevin train RECIPE --help lists them. --config reads them from a TOML
    file, and --dry-run says what a run would cost.

    Example: langevin train lora --train_data_dir pictures --pretrained_model_name_or_path langevin/shapes
    """
    if recipe in ("--help", "-h"):
        typer.echo(context.get_help())
        return
    from langevin.training.command import run

    run(recipe, context.args)


@app.command()
def info(
    picture: Annotated[
        Path, typer.Argument(help="PNG, JPEG, WebP, GIF, MP4, WAV; also by AUTOMATIC1111 and relatives")
    ],
    json: Annotated[bool, typer.Option("--json", help="as JSON")] = False,
) -> None:
    """Show the settings that made a picture or a video."""
    from langevin.cli.again import show

    show(picture, as_json=json)


@app.command()
def again(
    picture: Annotated[Path, typer.Argument(help="a picture, sound or video that carries its settings")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="default: NAME-again beside it"),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="instead of the one it was made with")] = None,
    device: Device = None,
    force: Force = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="load whatever models the picture names")] = False,
) -> None:
    """Make a picture or a video again from the settings it carries, and say whether the pixels are the same.

    The models that it names are loaded if they are in the box or in the hub's cache. For others (any folder, or from
    the hub) --yes is needed, since anybody may have made the picture; or --model, which names yours.

    The exit code is 1 if they should be the same and are not. For pictures of other programs the model, noise and
    some settings differ; what can be taken over is.
    """
    from langevin.cli.again import again as run

    run(picture, out=out, model=model, device=device, force=force, yes=yes)
