"""The course of a call, on pipelines of a kind that langevin does not have yet: cascades, vectors, sounds, tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from langevin import (
    ClassifierFreeGuidance,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    Guider,
    Inpaint,
    KarrasVeScheduler,
    SelfAttentionGuidance,
    UNet2DModel,
    VQDiffusionScheduler,
    Windows,
)
from langevin.checks import Count
from langevin.codecs.pixels import PixelCodec, PlainCodec
from langevin.media.settings import read_settings
from langevin.models.base import ModelMixin
from langevin.outputs import ImagePipelineOutput
from langevin.pipelines.call import Call
from langevin.pipelines.given import Given, takes

DIM = 6


class Mixed(nn.Module):
    """A network for x of any rank: places mixed, moved by what it is told."""

    def __init__(self, channels: int, out: int | None = None, told: int = DIM) -> None:
        super().__init__()
        torch.manual_seed(channels)
        self.mix = nn.Linear(channels, out or channels)
        self.tell = nn.Linear(told, out or channels)
        self.asked: list[torch.Size] = []

    @property
    def dtype(self) -> torch.dtype:
        return self.mix.weight.dtype

    def forward(self, x, t, embedding=None, return_dict=True):
        self.asked.append(x.shape)
        y = self.mix(x.movedim(1, -1)).tanh()
        if embedding is not None:
            y = y + self.tell(embedding).view(len(x), *[1] * (y.ndim - 2), -1)
        return (y.movedim(-1, 1),)


class Channels(Guider):
    """Shows the network a picture beside x."""

    def __init__(self, name: str, picture: torch.Tensor) -> None:
        self.name, self.picture = name, picture

    def prepare(self, setup):
        setup.told.put("channels", self.name, setup.rows(self.picture))


@dataclass(frozen=True, kw_only=True)
class CascadeGiven(Given):
    """Args:
    count: how many.
    word: a number in a text's place.
    """

    count: Count = field(default=1, kw_only=False)
    word: float = 0.5
    prior_scale: float = 4.0
    scale: float = 3.0

    positional = "count word"


class Cascade(DiffusionPipeline):
    """A prior, a decoder that learns its variance, and a network that makes its pictures larger."""

    _callback_tensor_inputs = ["latents"]

    def __init__(self, prior, decoder, super_res, prior_scheduler, scheduler):
        super().__init__()
        self.register_modules(
            prior=prior, decoder=decoder, super_res=super_res, prior_scheduler=prior_scheduler, scheduler=scheduler
        )

    @takes(CascadeGiven)
    def __call__(self, given: CascadeGiven) -> Any:
        """Make pictures."""
        n = given.count
        call = Call(self, given, n)
        word, nothing = torch.full((n, DIM), given.word), torch.zeros(n, DIM)
        text = {"positive": {"embedding": word}, "negative": {"embedding": nothing}}
        guided = ClassifierFreeGuidance(given.prior_scale)
        prior = call.stage(
            self.prior, self.prior_scheduler, (n, DIM), text, [guided], steps=3, codec=PlainCodec(), name="prior"
        )
        told = {"positive": {"embedding": call.denoise(prior)}, "negative": {"embedding": nothing}}
        decoder = call.stage(
            self.decoder, self.scheduler, (n, 3, 8, 8), told, [ClassifierFreeGuidance(given.scale), *given.guiders],
            steps=4, name="decoder",
        )  # fmt: skip
        small = call.denoise(decoder)
        shown = Channels("small", interpolate(small, (16, 16)))
        large = call.stage(
            self.super_res, self.prior_scheduler, (n, 3, 16, 16), guiders=[shown], steps=2, name="super-resolution"
        )
        return ImagePipelineOutput(call.deliver(call.decode(large, call.denoise(large))))


@pytest.fixture
def cascade():
    learned = DDPMScheduler(variance_type="learned_range")
    pipe = Cascade(Mixed(DIM), Mixed(3, 6), Mixed(6, 3), DDIMScheduler(), learned)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_cascade_makes_pictures_and_each_is_the_same_made_alone(cascade):
    together = cascade(3, seed=5, output_type="pt").images
    assert together.shape == (3, 3, 16, 16)
    assert not torch.allclose(together[0], together[1])
    alone = cascade(1, seed=7, output_type="pt").images
    torch.testing.assert_close(alone[0], together[2], atol=1e-5, rtol=0)
    assert not torch.allclose(cascade(1, -0.5, seed=7, output_type="pt").images, alone)


def test_the_stages_networks_see_what_is_theirs(cascade):
    cascade(2, seed=0)
    assert cascade.prior.asked == [(4, DIM)] * 3
    assert cascade.decoder.asked == [(4, 3, 8, 8)] * 4
    assert cascade.super_res.asked == [(2, 6, 16, 16)] * 2


def test_guiders_see_predictions_and_the_solver_the_variance(cascade):
    seen = []

    class Watch(Guider):
        def combine(self, prediction, predictions, x, step):
            seen.append((prediction.shape, predictions["negative"].shape, step.variance.shape))
            return prediction

    plain = cascade(2, seed=0, output_type="pt").images
    watched = cascade(2, seed=0, output_type="pt", guiders=[Watch()]).images
    assert torch.equal(plain, watched)
    assert set(seen) == {((2, 3, 8, 8),) * 3}
    # the variance counts: a network that says another makes another picture
    with torch.no_grad():
        cascade.decoder.mix.bias[3:] += 2
    assert not torch.allclose(plain, cascade(2, seed=0, output_type="pt").images)
    # and not to a solver that does not learn it
    cascade.scheduler = DDPMScheduler()
    fixed = cascade(2, seed=0, output_type="pt").images
    with torch.no_grad():
        cascade.decoder.mix.bias[3:] -= 2
    assert torch.equal(fixed, cascade(2, seed=0, output_type="pt").images)


def test_the_variance_is_that_of_the_positive_branch(cascade):
    said = {}
    step = cascade.scheduler.plan

    def plan(*args, **kwargs):
        run = step(*args, **kwargs)
        solve = run.step
        run.step = lambda prediction, i, x, noise=None: (said.update({i: prediction}), solve(prediction, i, x, noise))[
            1
        ]
        return run

    cascade.scheduler.plan = plan
    seen = {}

    class Watch(Guider):
        def before(self, x, step):
            both = step.denoiser(x, step, step.conditions(["positive"]))["positive"]
            seen[step.index] = both[:, 3:]
            return x

    cascade(1, seed=0, guiders=[Watch()])
    torch.testing.assert_close(said[0][:, 3:], seen[0])


def test_callbacks_bars_and_settings_tell_the_stages_apart(cascade, capsys, tmp_path):
    stages = []
    cascade.set_progress_bar_config()
    made = cascade(
        2, seed=3, callback_on_step_end=lambda call, i, t, tensors: stages.append((call.setup.name, i)) or {}
    ).images
    assert [name for name, i in stages if i == 0] == ["prior", "decoder", "super-resolution"]
    assert len(stages) == 3 + 4 + 2
    bars = capsys.readouterr().err
    assert all(f"{name}: 100%" in bars for name in ("prior", "decoder", "super-resolution"))
    made[1].save(tmp_path / "made.png")
    settings = read_settings(tmp_path / "made.png")
    assert settings["seed"] == 4
    assert settings["word"] == 0.5
    assert settings["stages"]["prior"]["scheduler"] == "DDIMScheduler"
    assert settings["stages"]["decoder"]["scheduler_config"]["variance_type"] == "learned_range"


def test_an_interrupted_stage_ends_the_call(cascade):
    def stop(call, i, t, tensors):
        call._interrupt = call.setup.name == "decoder"
        return {}

    for network in (cascade.prior, cascade.decoder, cascade.super_res):
        network.asked.clear()
    cascade(1, seed=0, callback_on_step_end=stop)
    assert [len(n.asked) for n in (cascade.prior, cascade.decoder, cascade.super_res)] == [3, 1, 0]


def test_callbacks_may_set_the_guidance_of_their_stage(cascade):
    def without(call, i, t, tensors):
        call.guidance_scale = 1.0
        return {}

    cascade(1, seed=0, callback_on_step_end=without)
    assert [len(shape) and shape[0] for shape in cascade.decoder.asked] == [2, 1, 1, 1]


# -- x of any rank ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class AnyGiven(Given):
    latents: Any = None


class AnyPipeline(DiffusionPipeline):
    """Denoises an x of whatever shape."""

    _callback_tensor_inputs = ["latents"]

    def __init__(self, network, scheduler):
        super().__init__()
        self.register_modules(network=network, scheduler=scheduler)
        self.options = {}
        self.law = torch.randn
        self.set_progress_bar_config(disable=True)

    @takes(AnyGiven)
    def __call__(self, given: AnyGiven) -> Any:
        """Make it."""
        call = Call(self, given, self.shape[0], law=self.law)
        setup = call.stage(
            self.network,
            self.scheduler,
            self.shape,
            guiders=given.guiders,
            steps=4,
            latents=given.latents,
            **self.options,
        )
        return ImagePipelineOutput(call.decode(setup, call.denoise(setup)))


SHAPES = {"vectors": (2, 5), "sound": (2, 2, 32), "pictures": (2, 3, 8, 8), "frames": (2, 4, 3, 8, 8)}


def of_rank(kind, **options):
    shape = SHAPES[kind]
    pipe = AnyPipeline(Mixed(shape[1]), DDIMScheduler(clip_sample=False))
    pipe.shape, pipe.options = shape, {"codec": PlainCodec(len(shape) - 2, shape[1]), **options}
    return pipe


@pytest.mark.parametrize("kind", SHAPES)
def test_x_may_be_of_any_rank(kind):
    pipe = of_rank(kind)
    made = pipe(seed=1).images
    assert made.shape == SHAPES[kind]
    pipe.shape = (1, *SHAPES[kind][1:])
    torch.testing.assert_close(pipe(seed=2).images[0], made[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["vectors", "sound"])
@pytest.mark.parametrize("guider", [Windows(4, 2), SelfAttentionGuidance(0.5)])
def test_guiders_of_pictures_refuse_what_is_none(kind, guider):
    with pytest.raises(ValueError, match=r"works on pictures"):
        of_rank(kind)(guiders=[guider])


def test_windows_cut_every_frame():
    pipe = of_rank("frames")
    whole = pipe(seed=0).images
    pipe.network.asked.clear()
    cut = pipe(seed=0, guiders=[Windows(4, 4)]).images
    assert {shape[-3:] for shape in pipe.network.asked} == {(3, 4, 4)}
    torch.testing.assert_close(cut, whole, atol=1e-5, rtol=0)  # this network looks at single places


def test_latents_of_another_shape_are_refused_in_one_line():
    with pytest.raises(ValueError, match=r"latents is \(2, 4\); \(2, 5\) is needed"):
        of_rank("vectors")(latents=torch.zeros(2, 4))


def test_a_network_is_any_callable():
    pipe = of_rank("pictures")
    inner = pipe.network
    made = pipe(seed=0).images
    # a preconditioned network: shown half, its answer doubled
    pipe.__dict__["network"] = lambda x, t, return_dict=False: (2 * inner(0.5 * x, t)[0],)
    assert not torch.allclose(pipe(seed=0).images, made)
    assert pipe(seed=0).images.dtype == torch.float32


def test_pixels_of_networks_that_know_zero_to_one():
    codec = PixelCodec(3, low=0)
    pixels = torch.rand(1, 3, 4, 4) * 2 - 1
    assert codec.encode(pixels).min() >= 0
    torch.testing.assert_close(codec.decode(codec.encode(pixels)), pixels)
    with pytest.raises(ValueError, match=r"low is 0\.5"):
        PixelCodec(3, low=0.5)


# -- beginnings, laws, noise -----------------------------------------------------------------------------------------


class Codes(nn.Module):
    """Log-probabilities of 4 codes, ``(batch, 4, places)``, from a token map."""

    dtype = torch.float32

    def forward(self, x, t, return_dict=True):
        places = torch.arange(x.shape[1])
        wanted = nn.functional.one_hot(places % 4, 4).T.expand(len(x), -1, -1).float()
        return ((wanted * 8).log_softmax(1),)


def test_a_token_map_begins_as_all_mask_and_ends_as_the_network_says():
    scheduler = VQDiffusionScheduler(num_vec_classes=5)
    pipe = AnyPipeline(Codes(), scheduler)
    pipe.shape, pipe.law, drawn = (2, 16), torch.rand, []

    def law(*args, **kwargs):
        drawn.append(torch.rand(*args, **kwargs))
        return drawn[-1]

    pipe.law, pipe.options = law, {"codec": PlainCodec()}
    seen = []

    def watch(call, i, t, tensors):
        seen.append(tensors["latents"].clone())
        return {}

    made = pipe(seed=0, callback_on_step_end=watch).images
    assert made.dtype == torch.int64
    assert (made == torch.arange(16) % 4).float().mean() > 0.9
    assert (seen[0] == 4).any()  # some are still masked after the first of four steps
    assert all(noise.min() >= 0 and noise.max() < 1 for noise in drawn)
    assert len(drawn) == 2 * 4  # for each picture and step; beginning with the mask takes none


def test_karras_ve_begins_its_own_way():
    """Against the reference's pipeline; its network is told σ and shown pixels in [0, 1]."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    config = dict(sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
                  down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)  # fmt: skip
    theirs = diffusers.UNet2DModel(**config).eval()
    ours = UNet2DModel(**config).eval()
    ours.load_state_dict(theirs.state_dict())
    reference = diffusers.KarrasVePipeline(theirs, diffusers.KarrasVeScheduler())
    reference.set_progress_bar_config(disable=True)
    expected = reference(num_inference_steps=4, generator=torch.Generator().manual_seed(0), output_type="np").images

    def shown(x, sigma, return_dict=False):
        return (sigma / 2 * ours((x + 1) / 2, sigma / 2).sample,)

    pipe = AnyPipeline(ours, KarrasVeScheduler())
    pipe.__dict__["network"], pipe.shape = shown, (1, 3, 8, 8)
    made = pipe(generator=torch.Generator().manual_seed(0)).images
    made = (made / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    torch.testing.assert_close(torch.from_numpy(made), torch.from_numpy(expected), atol=1e-4, rtol=0)


def test_a_guider_may_replace_a_steps_noise():
    class Its(Guider):
        def before(self, x, step):
            step.noise = torch.zeros_like
            return x

    pipe = of_rank("pictures")
    pipe.scheduler = DDPMScheduler(clip_sample=False)
    first = pipe(seed=0, guiders=[Its()]).images
    noisy = pipe(seed=0).images
    assert not torch.allclose(first, noisy)
    latents = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    # without noise nothing is random any more
    made = [pipe(seed=seed, latents=latents, guiders=[Its()]).images for seed in (1, 2)]
    assert torch.equal(*made)


# -- conditions of every branch --------------------------------------------------------------------------------------


class Sum(ModelMixin):
    """Adds up x's channels, in groups of three, and what it is told; counts how often that was put together."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.register_to_config(in_channels=9)
        self.ids = []

    def forward(self, x, t, level=None, own=None, return_dict=True):
        self.ids.append(id(level))
        more = level if own is None else level + own
        return (x.unflatten(1, (3, 3)).sum(1) + more.view(-1, 1, 1, 1),)


def test_what_all_branches_are_told_is_stacked_once_and_a_branchs_own_entries_win():
    class Told(Guider):
        def prepare(self, setup):
            setup.told["level"] = torch.tensor([1.0, 2.0])
            setup.branches["other"] = {"level": torch.tensor([3.0, 3.0])}

        def needs(self, step):
            return ("other",)

        def combine(self, prediction, predictions, x, step):
            torch.testing.assert_close(
                (predictions["other"] - predictions["positive"])[:, 0, 0, 0], torch.tensor([2.0, 1.0])
            )
            return prediction * 0

    pipe = AnyPipeline(Sum(), DDIMScheduler(clip_sample=False))
    pipe.shape = (2, 3, 8, 8)
    picture = torch.rand(1, 3, 8, 8)
    pipe(seed=0, guiders=[Channels("a", picture), Told(), Channels("b", picture)])
    assert len(set(pipe.network.ids)) == 1
    pipe(seed=0, guiders=[Channels("a", picture), Channels("b", picture), Told(), Windows(4, 4)])


def test_joined_channels_that_a_network_does_not_take_are_refused_in_one_line():
    pipe = AnyPipeline(Sum(), DDIMScheduler())
    pipe.shape = (2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"takes 9 channels, where x and what is joined to it \(a\) have 6"):
        pipe(guiders=[Channels("a", torch.rand(1, 3, 8, 8))])


def test_inpainting_works_without_latents():
    pipe = of_rank("pictures", codec=PixelCodec(3))
    picture, mask = torch.rand(1, 3, 8, 8) * 2 - 1, torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    made = pipe(seed=0, guiders=[Inpaint(picture, mask)]).images
    torch.testing.assert_close(made[..., 4:], picture.expand(2, -1, -1, -1)[..., 4:])
    assert not torch.allclose(made[..., :4], picture[..., :4].expand(2, -1, -1, -1))


def test_the_loop_calls_methods_that_were_set_on_an_instance_or_are_delegated():
    class Delegate:
        """Not a subclass with methods of its own: hands everything on."""

        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def begin(self):
            return self

    pipe = of_rank("pictures")
    plain = pipe(seed=0).images
    guider = Guider()
    guider.after = lambda x, step: x + 1
    moved = pipe(seed=0, guiders=[guider]).images
    assert not torch.allclose(moved, plain)
    from langevin.denoiser import NetworkDenoiser
    from langevin.loop import denoise

    run = pipe.scheduler.plan(2)
    made = denoise(
        torch.zeros(1, 3, 2, 2), run, NetworkDenoiser(pipe.network), {"positive": {}}, [Delegate(guider)], noise=None
    )
    assert made.mean() > 0.5


# -- what a program sees ---------------------------------------------------------------------------------------------


def test_a_pipeline_tells_of_its_calls_and_can_end_them():
    import pickle

    pipe = of_rank("pictures")
    seen = []

    def stop(call, i, t, tensors):
        seen.append((pipe.interrupt, pipe.num_timesteps))
        pipe._interrupt = i == 1
        return {}

    pipe(seed=0, callback_on_step_end=stop)
    assert seen == [(False, 4), (False, 4)]
    assert not pipe.interrupt
    assert pipe.num_timesteps == 4
    assert pickle.loads(pickle.dumps(pipe)).num_timesteps is None
    pipe.network.asked.clear()
    pipe(seed=0)
    assert len(pipe.network.asked) == 4, "the next call runs to its end"


@pytest.mark.parametrize("cls", [DDIMScheduler, KarrasVeScheduler])
def test_callbacks_see_the_runs_schedule(cls):
    pipe = of_rank("pictures")
    pipe.scheduler = cls()
    seen = []

    def look(call, i, t, tensors):
        scheduler = call.scheduler
        seen.append((scheduler.step_index, float(scheduler.timesteps[i]), len(scheduler.sigmas), float(t)))
        return {}

    pipe(seed=0, callback_on_step_end=look)
    run = pipe.scheduler.plan(4)
    assert [index for index, *_ in seen] == list(range(1, len(run) + 1))
    assert all(told == t and sigmas == len(run) + 1 for _, told, sigmas, t in seen)
    assert pipe.scheduler.step_index is None, "the pipeline's own is as it was"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_is_one_warning_that_names_the_step(caplog, bad):
    class Spoil(Guider):
        def after(self, x, step):
            return x * bad if step.index == 2 else x

    pipe = of_rank("pictures")
    with caplog.at_level("WARNING", "langevin"):
        pipe(seed=0, guiders=[Spoil()])
    assert [record.message for record in caplog.records] == [
        "x is NaN or infinite from network call 3 of 4 on (Mixed, torch.float32); look at the weights and the inputs."
    ]


def test_seeds_mean_what_they_meant():
    """``seed=7`` is the noise of ``torch.Generator().manual_seed(7)``, and picture k of a batch has seed 7 + k."""
    pipe = of_rank("pictures")
    first = []

    class Look(Guider):
        def before(self, x, step):
            first.append(x)
            return x

    pipe(seed=7, guiders=[Look()])
    for k in range(2):
        expected = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(7 + k))
        assert torch.equal(first[0][k], expected[0])
