"""The command line with a pipeline that paints in an instant: options, files, exit codes, one-line errors."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import langevin
from langevin.cli.app import app
from langevin.cli.choices import parse_scheduler, parse_size
from langevin.cli.errors import BadUsage
from langevin.cli.files import free, slug, targets
from langevin.media.picture import Picture
from langevin.media.settings import read_settings


class FakeScheduler:
    def __init__(self, **config):
        self.config = config

    @classmethod
    def from_config(cls, config, **overrides):
        return cls(**{**config, **overrides})


class EulerDiscreteScheduler(FakeScheduler):
    pass


class DDIMScheduler(FakeScheduler):
    pass


class Output:
    def __init__(self, images, flagged=None):
        self.images, self.nsfw_content_detected = images, flagged


class FakePipeline:
    """Paints noise from the picture's seed, its prompt, and whatever else was said."""

    loaded = None
    flagged = None

    @classmethod
    def from_pretrained(cls, name, torch_dtype=None):
        if name == "missing/model":
            raise OSError("There is no missing/model.\nNeither here nor there.")
        pipe = cls()
        pipe.name, pipe.dtype = name, str(torch_dtype or "torch.float32").removeprefix("torch.")
        pipe.scheduler = DDIMScheduler(beta_start=0.1)
        FakePipeline.loaded = pipe
        return pipe

    def to(self, device):
        self.device = device
        return self

    def set_progress_bar_config(self, **kwargs):
        self.progress = kwargs

    def __call__(
        self,
        prompt=None,
        height=None,
        width=None,
        num_inference_steps=50,
        guidance_scale=7.5,
        negative_prompt=None,
        num_images_per_prompt=1,
        *,
        seed=None,
        guiders=(),
    ):
        self.call = {k: v for k, v in locals().items() if k != "self"}
        return self._paint(num_images_per_prompt, height or 8, width or 8, self.call)

    def _paint(self, count, height, width, call):
        pictures = []
        for seed in range(call["seed"], call["seed"] + count):
            said = {k: v for k, v in call.items() if k not in ("seed", "num_images_per_prompt", "batch_size")}
            said = {k: v for k, v in said.items() if v not in (None, ())}
            said |= {"scheduler": type(self.scheduler).__name__, "scheduler_config": self.scheduler.config}
            said |= {"model": self.name, "dtype": self.dtype, "height": height, "width": width}
            salt = sum(json.dumps(said, sort_keys=True).encode())
            pixels = np.random.default_rng([seed, salt]).integers(0, 256, (height, width, 3), dtype=np.uint8)
            said |= {"langevin": "0.1.0", "pipeline": type(self).__name__, "device": "cpu", "seed": seed}
            pictures.append(Picture.from_array(pixels, said))
        return Output(pictures, self.flagged)


class UnconditionalPipeline(FakePipeline):
    def __call__(self, batch_size=1, num_inference_steps=1000, *, seed=None):
        self.call = {k: v for k, v in locals().items() if k != "self"}
        return self._paint(batch_size, 8, 8, self.call)


@pytest.fixture(autouse=True)
def fake(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LANGEVIN_DEBUG", raising=False)
    for name, value in (
        ("DiffusionPipeline", FakePipeline),
        ("EulerDiscreteScheduler", EulerDiscreteScheduler),
        ("DDIMScheduler", DDIMScheduler),
    ):
        monkeypatch.setattr(langevin, name, value, raising=False)
    return FakePipeline


def run(*arguments, code=0, stdin=None):
    result = CliRunner().invoke(app, [str(a) for a in arguments], input=stdin)
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    if code:
        assert result.stderr.startswith("langevin: ")
        assert "Traceback" not in result.output
    return result


def error(*arguments, code, stdin=None):
    """The one line on stderr."""
    lines = run(*arguments, code=code, stdin=stdin).stderr.splitlines()
    assert len(lines) == 1
    return lines[0]


def files():
    return sorted(path.name for path in Path().iterdir())


# ---------------------------------------------------------------------------------------------- generate


def test_the_command_of_the_readme(fake):
    result = run("generate", "a red circle", "--steps", 20, "--seed", 7, "--out", "circle.png")
    assert result.stdout == "circle.png  (seed 7, 8x8)\n"
    assert files() == ["circle.png"]
    assert fake.loaded.name == "langevin/shapes"
    call = fake.loaded.call
    assert (call["prompt"], call["num_inference_steps"], call["seed"]) == ("a red circle", 20, 7)
    assert read_settings("circle.png")["prompt"] == "a red circle"


def test_every_option_reaches_the_pipeline(fake):
    words = "generate x --model some/model --scheduler euler --guidance 3.5 --negative ugly --size 64x96 --count 2"
    run(*words.split(), "--device", "cpu", "--dtype", "fp16", "--seed", 1, "--steps", 4)
    pipe = fake.loaded
    assert (pipe.name, pipe.dtype, pipe.device) == ("some/model", "float16", "cpu")
    assert type(pipe.scheduler) is EulerDiscreteScheduler
    assert pipe.scheduler.config == {"beta_start": 0.1}
    assert pipe.call == {
        "prompt": "x",
        "height": 96,
        "width": 64,
        "num_inference_steps": 4,
        "guidance_scale": 3.5,
        "negative_prompt": "ugly",
        "num_images_per_prompt": 2,
        "seed": 1,
        "guiders": (),
    }


def test_what_is_not_said_is_left_to_the_pipeline(fake):
    run("generate", "x")
    assert fake.loaded.call["num_inference_steps"] == 50
    assert fake.loaded.call["guidance_scale"] == 7.5
    assert fake.loaded.dtype == "float32"
    assert type(fake.loaded.scheduler) is DDIMScheduler


def test_a_random_seed_is_chosen_and_said(fake):
    first, second = run("generate", "x").stdout, run("generate", "x").stdout
    assert first != second
    assert f"(seed {fake.loaded.call['seed']}," in second


def test_the_prompt_from_standard_input(fake):
    run("generate", "-", stdin="a blue\nsquare\n")
    assert fake.loaded.call["prompt"] == "a blue\nsquare"
    assert "no prompt on standard input" in error("generate", "-", code=2, stdin="  \n")


def test_names_come_from_prompt_and_seed():
    run("generate", "A red circle, left of: a/b", "--seed", 7, "-n", 2)
    assert files() == ["a-red-circle-left-of-a-b-7.png", "a-red-circle-left-of-a-b-8.png"]


def test_several_pictures_are_numbered():
    result = run("generate", "x", "--seed", 7, "-n", 3, "--out", "c.png")
    assert files() == ["c-1.png", "c-2.png", "c-3.png"]
    assert [line.split("seed ")[1].split(",")[0] for line in result.stdout.splitlines()] == ["7", "8", "9"]
    assert [read_settings(name)["seed"] for name in files()] == [7, 8, 9]


def test_no_file_is_overwritten_unless_forced():
    Path("c.png").write_text("mine")
    result = run("generate", "x", "--out", "c.png")
    assert result.stdout.startswith("c-2.png")
    assert "c.png was there already" in result.stderr
    assert Path("c.png").read_text() == "mine"
    run("generate", "x", "--out", "c.png")
    assert files() == ["c-2.png", "c-3.png", "c.png"]
    run("generate", "x", "--out", "c.png", "--force")
    assert files() == ["c-2.png", "c-3.png", "c.png"]
    assert read_settings("c.png")
    run("generate", "x", "--out", "c.png", "-n", 3)
    assert files() == ["c-1.png", "c-2.png", "c-3.png", "c-4.png", "c-5.png", "c.png"]
    for _ in range(2):
        run("generate", "x", "--seed", 1)
    assert {"x-1.png", "x-1-2.png"} < set(files())


def test_out_may_be_a_folder():
    Path("pictures").mkdir()
    assert run("generate", "x", "--seed", 3, "--out", "pictures").stdout.startswith(str(Path("pictures/x-3.png")))


@pytest.mark.parametrize("name", ["x.jpg", "x.webp", "X.PNG", "x.tiff", "a b'c 🔴.png"])
def test_other_formats(name):
    run("generate", "x", "--out", name)
    assert read_settings(name)["prompt"] == "x"


def test_models_without_prompts(monkeypatch):
    monkeypatch.setattr(langevin, "DiffusionPipeline", UnconditionalPipeline)
    run("generate", "-n", 2, "--seed", 5)
    assert files() == ["picture-5.png", "picture-6.png"]
    assert UnconditionalPipeline.loaded.call == {"batch_size": 2, "num_inference_steps": 1000, "seed": 5}
    assert "paints without a prompt" in error("generate", "x", code=2)
    assert "takes no --negative" in error("generate", "--negative", "x", code=2)
    assert "takes no --size" in error("generate", "--size", "8", code=2)


def test_flagged_pictures_are_spoken_of(monkeypatch):
    monkeypatch.setattr(FakePipeline, "flagged", [True, False])
    assert "1 of 2 pictures" in run("generate", "x", "-n", 2).stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["generate"], 2, "needs a prompt"),
        (["generate", "x", "--scheduler", "heun3"], 2, "there is no scheduler 'heun3'; there are heun, "),
        (["generate", "x", "--size", "big"], 2, "WIDTHxHEIGHT"),
        (["generate", "x", "--size", "0x8"], 2, "WIDTHxHEIGHT"),
        (["generate", "x", "--dtype", "int8"], 2, "float32, float16, bfloat16"),
        (["generate", "x", "--device", "gpu"], 2, "cpu, cuda"),
        (["generate", "x", "--device", "cuda:99"], 2, "CUDA devices here"),
        (["generate", "x", "--steps", "0"], 2, "--steps"),
        (["generate", "x", "--steps", "many"], 2, "--steps"),
        (["generate", "x", "--seed", "-1"], 2, "--seed"),
        (["generate", "x", "--seed", str(2**64)], 2, "--seed"),
        (["generate", "x", "--count", "0"], 2, "--count"),
        (["generate", "x", "--out", "x.doc"], 2, "'.doc'"),
        (["generate", "x", "--out", "nowhere/x.png"], 1, "there is no folder nowhere"),
        (["generate", "x", "--out", "nowhere"], 2, "neither a folder"),
        (["generate", "x", "--wrong"], 2, "No such option"),
        (["generate", "x", "y"], 2, "unexpected"),
        (["generate", "x", "--model", "missing/model"], 1, "There is no missing/model. Neither here nor there."),
        (["paint"], 2, "No such command"),
        (["info"], 2, "Missing argument"),
        (["info", "none.png"], 1, "there is no file none.png"),
        (["again", "none.png"], 1, "there is no file none.png"),
        (["info", "."], 2, "is a folder"),
    ],
)
def test_errors_are_one_line(arguments, code, words):
    assert words.lower() in error(*arguments, code=code).lower()
    assert files() == []


def test_what_cannot_work_is_refused_before_loading(fake):
    fake.loaded = None
    for wrong in (["--out", "x.doc"], ["--scheduler", "no"], ["--size", "x"], ["--dtype", "x"], ["--device", "x"]):
        run("generate", "x", *wrong, code=2)
    assert fake.loaded is None


def test_unexpected_errors_name_themselves_and_debug_shows_all(fake, monkeypatch):
    def broken(*args, **kwargs):
        raise KeyError("unet")

    monkeypatch.setattr(fake, "from_pretrained", broken)
    assert error("generate", "x", code=1) == "langevin: KeyError: 'unet' (LANGEVIN_DEBUG=1 shows where)"
    monkeypatch.setenv("LANGEVIN_DEBUG", "1")
    assert isinstance(CliRunner().invoke(app, ["generate", "x"]).exception, KeyError)


def test_interrupted_while_painting_or_saving_leaves_nothing(fake, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fake, "_paint", interrupted)
        assert error("generate", "x", code=130) == "langevin: interrupted"

    def half(self, file, *args, **kwargs):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", half)
    assert error("generate", "x", code=130) == "langevin: interrupted"
    assert files() == []


# ---------------------------------------------------------------------------------------- info and again

FOREIGN = "a cat\nNegative prompt: dog\nSteps: 5, Sampler: Euler, CFG scale: 4, Seed: 9, Size: 8x16, Model: v1-5"


def foreign(name="foreign.png"):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("parameters", FOREIGN)
    Image.new("RGB", (8, 16)).save(name, pnginfo=info)
    return name


def test_info_says_what_made_a_picture():
    run("generate", "a red\ncircle", "--seed", 7, "--out", "c.png")
    text = run("info", "c.png").stdout
    assert text.startswith("prompt ")
    for words in ("seed                 7", "beta_start = 0.1", "DDIMScheduler"):
        assert words in text
    assert json.loads(run("info", "c.png", "--json").stdout) == read_settings("c.png")
    assert json.loads(run("info", foreign(), "--json").stdout)["seed"] == 9


def test_pictures_without_settings_and_files_that_are_none():
    Image.new("RGB", (4, 4)).save("plain.png")
    Path("text.png").write_text("hello")
    for command in ("info", "again"):
        assert "carries no settings" in error(command, "plain.png", code=1)
        assert "is not a picture" in error(command, "text.png", code=1)


def test_again_makes_the_same_pixels(fake):
    words = "--scheduler euler --guidance 3 --negative ugly --size 12x8 --count 3 --seed 7 --dtype bf16 --steps 4"
    run("generate", "a red circle, é", *words.split(), "--out", "c.png", "--model", "other/model")
    result = run("again", "c-2.png", "--yes")
    assert result.stdout.splitlines() == [
        "c-2-again.png  (seed 8, 12x8)",
        "identical: all 96 pixels are those of c-2.png",
    ]
    assert Image.open("c-2-again.png").tobytes() == Image.open("c-2.png").tobytes()
    assert read_settings("c-2-again.png") == read_settings("c-2.png")
    assert (fake.loaded.name, fake.loaded.dtype) == ("other/model", "bfloat16")


def test_again_never_replaces_a_picture_unless_forced():
    run("generate", "x", "--out", "c.png")
    before, settings = Image.open("c.png").tobytes(), read_settings("c.png")
    assert run("again", "c.png").stdout.startswith("c-again.png")
    assert run("again", "c.png").stdout.startswith("c-again-2.png")
    assert run("again", "c.png", "--out", "c.png").stdout.startswith("c-2.png")
    run("again", "c.png", "--out", "c.png", "--force")
    assert (Image.open("c.png").tobytes(), read_settings("c.png")) == (before, settings)


def test_again_says_when_pixels_differ():
    run("generate", "x", "--seed", 1, "--out", "c.png")
    image = Image.open("c.png")
    settings = read_settings(image)
    r, g, b = image.getpixel((2, 3))
    image.putpixel((2, 3), (r, g, b + 3 if b < 250 else b - 3))
    Picture(image, settings).save("edited.png")
    result = run("again", "edited.png", code=1)
    assert "not identical: 1 of 64 pixels differ from edited.png, by at most 3 of 255" in result.stdout
    Picture(image.resize((4, 4)), settings).save("small.png")
    assert "the size is not that of small.png" in run("again", "small.png", code=1).stdout
    Picture(image, {**settings, "langevin": "0.0.1"}).save("old.png")
    assert "langevin '0.0.1' then, '0.1.0' now" in run("again", "old.png", code=1).stderr


def test_again_of_a_jpeg_compares_roughly():
    run("generate", "x", "--seed", 1, "--out", "c.jpg")
    assert "keeps pixels only roughly" in run("again", "c.jpg").stdout


def test_again_of_another_programs_picture_is_best_effort(fake):
    result = run("again", foreign(), "--model", "langevin/shapes")
    assert "another program" in result.stderr
    assert "not identical" in result.stdout
    assert (fake.loaded.call["prompt"], fake.loaded.call["negative_prompt"]) == ("a cat", "dog")
    assert (fake.loaded.call["num_inference_steps"], fake.loaded.call["seed"]) == (5, 9)
    assert (fake.loaded.call["height"], fake.loaded.call["width"]) == (16, 8)
    assert fake.loaded.scheduler.config == {"beta_start": 0.1}


def test_again_of_another_programs_picture_whose_model_is_not_here(fake, monkeypatch):
    def missing(*args, **kwargs):
        raise OSError("no such model")

    monkeypatch.setattr(fake, "from_pretrained", missing)
    assert "'v1-5' cannot be loaded; name another with --model" in run("again", foreign(), code=1).stderr


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seed": None}, "does not say its seed"),
        ({"seed": -1}, "does not say its seed"),
        ({"seed": "7"}, "does not say its seed"),
        ({"model": None}, "does not say its model"),
        ({"not_recorded": ["latents"]}, "was made with latents"),
        ({"scheduler": "os"}, "its scheduler os is unknown here"),
        ({"scheduler": "DiffusionPipeline"}, "is unknown here"),
        ({"dtype": "complex64"}, "number format"),
        ({"guiders": [{"class": "DiffusionPipeline"}]}, "as a guider, which it is not"),
        ({"guiders": [{"class": "system", "x": 1}]}, "not one of langevin's"),
        ({"guiders": ["x"]}, "not one of langevin's"),
    ],
)
def test_again_with_settings_that_cannot_be_followed(settings, words):
    run("generate", "x", "--seed", 1, "--out", "c.png")
    mine = {**read_settings("c.png"), **settings}
    Picture(Image.open("c.png"), {k: v for k, v in mine.items() if v is not None}).save("c.png")
    assert words in error("again", "c.png", code=2 if "model" in settings else 1)


def test_again_builds_the_guiders_anew(fake):
    run("generate", "x", "--seed", 1, "--out", "c.png")
    from langevin.pipelines.results import describe_guider

    described = [describe_guider(langevin.GuidanceRescale(0.5)), describe_guider(langevin.ClassifierFreeGuidance(3.0))]
    Picture(Image.open("c.png"), {**read_settings("c.png"), "guiders": described}).save("c.png")
    CliRunner().invoke(app, ["again", "c.png"])
    assert list(map(describe_guider, fake.loaded.call["guiders"])) == described


# ------------------------------------------------------------------------------------------------ models


def test_models_lists_the_box_and_the_cache(monkeypatch, tmp_path):
    from langevin.checkpoints import folders

    found = [
        folders.Found("langevin/shapes", tmp_path, "StableDiffusionPipeline", 14_200_000),
        folders.Found("owner/name", tmp_path, "DDPMPipeline", 900),
    ]
    monkeypatch.setattr(folders, "local_models", lambda: found)
    text = run("models").stdout
    for words in (
        "langevin/shapes",
        "14.2 MB",
        "StableDiffusionPipeline",
        "text to image",
        "owner/name",
        "900 B",
        "cache",
    ):
        assert words in text
    rows = json.loads(run("models", "--json").stdout)
    assert [(row["name"], row["where"]) for row in rows] == [("langevin/shapes", "box"), ("owner/name", "cache")]
    monkeypatch.setattr(folders, "local_models", list)
    assert "no models here" in run("models").stdout


# ---------------------------------------------------------------------------------------------- the words


def test_help_and_version():
    assert run("--version").stdout == f"langevin {langevin.__version__}\n"
    assert "generate" in run().stdout
    for command in ("generate", "models", "info", "again"):
        assert "Usage" in run(command, "--help").stdout


@pytest.mark.parametrize(
    ("text", "size"), [("64", (64, 64)), ("64x96", (64, 96)), (" 64 X 96 ", (64, 96)), ("64×96", (64, 96))]
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "64x", "x64", "-1", "6.4", "0", "64x0", "1x2x3", "9999999"])
def test_wrong_sizes(text):
    with pytest.raises(BadUsage):
        parse_size(text)


def test_schedulers_by_any_name(monkeypatch):
    names = ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "PNDMScheduler"]
    monkeypatch.setattr(langevin, "__all__", [*names, "DPMSolverMultistepScheduler", "Picture"])
    for word in ("euler", "EULER", "EulerDiscrete", "eulerdiscretescheduler"):
        assert parse_scheduler(word) == ("EulerDiscreteScheduler", {})
    assert parse_scheduler("Euler a")[0] == parse_scheduler("euler-ancestral")[0] == names[1]
    assert parse_scheduler("plms") == ("PNDMScheduler", {})
    assert parse_scheduler("dpm++ 2m karras") == ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True})
    with pytest.raises(BadUsage, match="there is no scheduler 'ddim'; there are pndm"):
        parse_scheduler("ddim")


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red circle!", "a-red-circle"),
        ("../../etc/passwd", "etc-passwd"),
        ("", "picture"),
        (None, "picture"),
        ("🔴🔵", "picture"),
        ("ein grüner Kreis", "ein-grüner-kreis"),
        ("x" * 300, "x" * 50),
        ("word " * 30, "-".join(["word"] * 10)),
    ],
)
def test_slugs(prompt, name):
    assert slug(prompt) == name


def test_targets_are_all_different():
    paths = targets(None, "x", [7, 7, 7], force=False)
    assert [path.name for path in paths] == ["x-7.png", "x-7-2.png", "x-7-3.png"]
    Path("x-2.png").write_text("")
    assert free(Path("x-2.png"), [], "x") == Path("x-3.png")


# --------------------------------------------------------------------------------- in a process of its own


ELSEWHERE = {**os.environ, "PYTHONPATH": str(Path(langevin.__file__).resolve().parents[1])}


def command(*arguments):
    code = "from langevin.cli import main; main()"
    words = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, env=ELSEWHERE)


def test_light_commands_do_not_import_torch(tmp_path):
    Picture.from_array(np.zeros((2, 2, 3), np.uint8), {"seed": 1}).save("c.png")
    code = (
        "import sys\nfrom langevin.cli import main\nsys.argv[1:] = {}\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    for arguments in (["--version"], ["info", "c.png"], ["models"], ["generate", "--help"]):
        subprocess.run([sys.executable, "-c", code.format(arguments)], check=True, env=ELSEWHERE)


def test_the_command_in_a_process():
    done = command("info", "none.png")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "langevin: there is no file none.png\n")
    done = command("--version")
    assert (done.returncode, done.stdout) == (0, f"langevin {langevin.__version__}\n")
    assert command("nothing").returncode == 2


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c_in_a_process_leaves_no_file(tmp_path):
    code = """
import sys, time, numpy as np, langevin
from langevin.media.picture import Picture
from PIL import Image
def slow(self, file, *a, **k):
    file.write(b"half"); file.flush(); open("started", "w").close(); time.sleep(30)
Image.Image.save = slow
class Pipe:
    scheduler = None
    @classmethod
    def from_pretrained(cls, name, **k): return cls()
    def to(self, device): return self
    def set_progress_bar_config(self, **k): pass
    def __call__(self, prompt=None, num_images_per_prompt=1, seed=None):
        return type("Out", (), {"images": [Picture.from_array(np.zeros((2, 2, 3), np.uint8), {"seed": seed})]})
langevin.DiffusionPipeline = Pipe
from langevin.cli import main
sys.argv[1:] = ["generate", "x", "--out", "c.png", "--device", "cpu"]
main()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stderr=subprocess.PIPE,
        text=True,
        env=ELSEWHERE,
        # a shell's background jobs ignore the signal, and so would their children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        for _ in range(600):
            if Path("started").exists() or process.poll() is not None:
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, said) == (130, "langevin: interrupted\n")
    assert files() == ["started"]
