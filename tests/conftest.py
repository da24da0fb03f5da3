"""Folders of made-up heads, a model trained on them, and the way to the real scans."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from nibabel.orientations import apply_orientation, inv_ornt_aff

from leuko import train
from leuko.channels import Preparation
from leuko.cli import main
from leuko.recipes import MODERN, Phase
from leuko.train import Settings
from leuko.volume import Volume
from phantoms import Phantom, make_phantom

REAL = Path(__file__).parents[2] / "shared" / "data"
SMALL = {"shape": (48, 56, 12), "spacing_mm": (3.0, 3.0, 8.0), "lesions": 10}

# Derandomised: a suite that fails now and then says nothing about the change at hand.
settings.register_profile("usual", deadline=None, max_examples=100, derandomize=True)
settings.register_profile("thorough", deadline=None, max_examples=1000, derandomize=False)
settings.load_profile("usual")


def pytest_collection_modifyitems(items):
    absent = pytest.mark.skip(reason=f"REAL SCANS NOT TESTED: {REAL} is not there")
    for item in items:
        if "real" in item.keywords and not REAL.is_dir():
            item.add_marker(absent)


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of real scans."""
    return REAL


@pytest.fixture
def leuko(capsys):
    """Run a command; give back its exit code and what it printed to stdout and stderr."""

    def run(*arguments):
        code = 0
        try:
            main([str(a) for a in arguments])
        except SystemExit as end:
            code = end.code or 0
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def phantom() -> Phantom:
    """A small made-up head."""
    return make_phantom(np.random.default_rng(0), **SMALL)


@pytest.fixture(scope="session")
def heads(tmp_path_factory) -> Path:
    """Six labelled subjects, as a user would lay them out."""
    folder = tmp_path_factory.mktemp("heads")
    for number in range(6):
        make_phantom(np.random.default_rng(number), **SMALL).write(folder / f"head{number}")
    return folder


def stored(volume, order, flips=(1, 1, 1)):
    """The same image in the world, its array in another order."""
    turn = np.column_stack([order, flips])
    affine = volume.affine @ inv_ornt_aff(turn, volume.data.shape)
    return Volume(apply_orientation(volume.data, turn), affine, name=volume.name)


def small_settings(data: Path, *, steps: int, **changes) -> Settings:
    """A narrow network of three stages at the phantoms' own pixels."""
    rate = 3e-3
    recipe = replace(MODERN, steps=steps, phases=(Phase(0.1, 0.0, rate), Phase(0.9, rate, 0.0)))
    settings = Settings(
        data=str(data),
        recipe=recipe,
        preparation=Preparation(pixel_mm=3.0),
        stages=((8, 8), (16, 16), (32, 32)),
        init="none",
    )
    return replace(settings, **changes)


@pytest.fixture(scope="session")
def model(heads, tmp_path_factory) -> Path:
    """A model that has learnt to find the phantoms' lesions."""
    run = tmp_path_factory.mktemp("models") / "phantom-model"
    train.start(run, small_settings(heads, steps=300))
    train.fit(run)
    return run
