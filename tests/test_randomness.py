"""One generator per picture."""

from __future__ import annotations

import pytest
import torch

from langevin.randomness import Noise, noise_for, seeds_for

SHAPE = (3, 4, 5, 6)


def test_picture_k_of_a_batch_has_the_noise_it_has_alone():
    batch = Noise.from_seeds([7, 8, 9])
    alone = Noise.from_seeds([8])
    for _ in range(3):
        together = batch.draw(SHAPE, torch.float32, "cpu")
        assert torch.equal(together[1:2], alone.draw((1, *SHAPE[1:]), torch.float32, "cpu"))


def test_a_single_generator_draws_the_whole_batch_as_the_reference_does():
    from diffusers.utils.torch_utils import randn_tensor

    ours = Noise(torch.Generator().manual_seed(3)).draw(SHAPE, torch.float32, "cpu")
    assert torch.equal(ours, randn_tensor(SHAPE, generator=torch.Generator().manual_seed(3)))


def test_a_list_of_generators_draws_as_the_reference_does():
    from diffusers.utils.torch_utils import randn_tensor

    def generators():
        return [torch.Generator().manual_seed(s) for s in (5, 6, 7)]

    ours = Noise(generators())(torch.empty(SHAPE, dtype=torch.float16))
    assert torch.equal(ours, randn_tensor(SHAPE, generator=generators(), dtype=torch.float16))


def test_an_int_seed_counts_up_and_wraps():
    assert seeds_for(7, 3) == [7, 8, 9]
    assert seeds_for(2**64 - 1, 2) == [2**64 - 1, 0]
    assert seeds_for([1, 1], 2) == [1, 1]


@pytest.mark.parametrize("seed", [-1, 2**64, "7", [1, 2], [1, -2, 3], True, 1.5])
def test_bad_seeds_get_one_clear_line(seed):
    with pytest.raises(ValueError, match="seed") as caught:
        seeds_for(seed, 3)
    assert "\n" not in str(caught.value)


def test_seed_and_generator_exclude_each_other():
    with pytest.raises(ValueError, match="both"):
        noise_for(1, torch.Generator(), 3)


def test_the_seed_of_a_fresh_generator_is_known_and_of_a_used_one_is_not():
    generator = torch.Generator().manual_seed(11)
    assert noise_for(1, generator)[1] == [11]
    torch.randn(1, generator=generator)
    assert noise_for(1, generator)[1] == [None]
    assert noise_for(2, torch.Generator().manual_seed(1))[1] == [None, None]
    assert noise_for(2, seed=4)[1] == [4, 5]


def test_a_wrong_number_of_generators_is_refused():
    with pytest.raises(ValueError, match="2 generators for a batch of 3"):
        Noise([torch.Generator(), torch.Generator()]).draw(SHAPE, torch.float32, "cpu")
