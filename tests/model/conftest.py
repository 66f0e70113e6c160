"""A small config for tests of the model's parts."""

import pytest

from detection3d.config import Config
from detection3d.config_file import load_config


@pytest.fixture(scope="session")
def config() -> Config:
    return load_config("tiny", ["model.point_range=[-16,-16,-2,16,16,4]", "model.voxel_size=[0.25,0.25,0.25]"])
