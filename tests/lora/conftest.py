"""Fixtures shared by the tests of LoRAs."""

import pytest

from tests.pipelines.family_checks import Twins


@pytest.fixture(scope="session")
def twins(tmp_path_factory):
    return Twins(tmp_path_factory.mktemp("lora-twins"))
