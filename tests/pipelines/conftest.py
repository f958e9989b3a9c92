"""Fixtures shared by the tests of pipelines."""

import pytest

from tests.pipelines.family_checks import Twins


@pytest.fixture(scope="session")
def twins(tmp_path_factory):
    return Twins(tmp_path_factory.mktemp("twins"))


@pytest.fixture
def both(twins):
    """A function (unet, scheduler, safety) -> (our text-to-image pipeline, the reference's)."""

    def make(unet="sd1", scheduler="ddim", safety=False):
        return twins(unet=unet, scheduler=scheduler, safety=safety)

    return make
