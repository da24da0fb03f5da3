"""Folders of made-up heads, a model trained on them, and the way to the real scans."""

import os
import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import settings
from nibabel.orientations import apply_orientation, inv_ornt_aff

from leuko.cli import main
from leuko.io.outputs import KEY_SLICES_FILE, RECORD_FILE, REPORT_FILE
from leuko.io.record import Inputs
from leuko.model import runtime
from leuko.model.card import load_card, save_card
from leuko.preprocessing.slices import Preparation
from leuko.segment import SegmentSettings, segment
from leuko.training import loop, plan
from leuko.training.plan import Settings
from leuko.training.recipes import MODERN, Phase
from leuko.volume import Orientation, Volume
from phantoms import Phantom, make_phantom
from reports import a_head, a_record, a_scan

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
# WebGL by software, for `leuko view`.
BROWSER_OPTIONS = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
REAL = Path(__file__).parents[2] / "shared" / "data"
SMALL = {"shape": (48, 56, 12), "spacing_mm": (3.0, 3.0, 8.0), "lesions": 10}

TORCH_THREADS = torch.get_num_threads()

# Derandomised: a suite that fails now and then says nothing about the change at hand.
settings.register_profile("usual", deadline=None, max_examples=100, derandomize=True)
settings.register_profile("thorough", deadline=None, max_examples=1000, derandomize=False)
settings.load_profile("usual")


def segmented(flair, t1, out, *, model=None, exclude=None, save_intermediate=False, **settings):
    """Segment with a model, its name or its folder, and save the result in `out`."""
    if isinstance(model, str | Path):
        model, settings = None, {"model": str(model), **settings}
    found = segment(flair, t1, model=model, exclude=exclude, settings=SegmentSettings(**settings))
    found.save(out, save_intermediate=save_intermediate)
    return found


def pytest_collection_modifyitems(items):
    # The files that take longest begin, so that all cores are busy until the end.
    slow = Counter(item.path for item in items if "slow" in item.keywords)
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (-slow[item.path], -tests[item.path], item.path))
    absent = pytest.mark.skip(reason=f"REAL SCANS NOT TESTED: {REAL} is not there")
    no_browser = pytest.mark.skip(reason="PAGES NOT TESTED IN A BROWSER: no Chromium")
    elsewhere = pytest.mark.skip(reason=f"NOT TESTED on {sys.platform}: uses what only Linux has")
    for item in items:
        if "linux" in item.keywords and sys.platform != "linux":
            item.add_marker(elsewhere)
        if "browser" in item.keywords and not BROWSER:
            item.add_marker(no_browser)
        if "real" in item.keywords and not REAL.is_dir():
            item.add_marker(absent)


@pytest.fixture(scope="session", autouse=True)
def processors():
    """Each worker takes its share: with all processors each, their threads would wait for each
    other."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    share = max(1, runtime.available_cpus() // workers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "available_cpus", lambda: share)
        yield share


@pytest.fixture(autouse=True)
def torch_threads(processors):
    """A test may leave PyTorch with more."""
    torch.set_num_threads(min(processors, TORCH_THREADS))


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


def assert_one_line_error(answer, *words):
    code, out, err = answer
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for word in words:
        assert str(word) in err


@pytest.fixture(scope="session")
def launch():
    """Starts a Chromium with further options."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:

        def started(*options):
            arguments = [*BROWSER_OPTIONS, *options]
            return playwright.chromium.launch(executable_path=BROWSER, args=arguments)

        yield started


@pytest.fixture(scope="session")
def browser(launch):
    chromium = launch()
    yield chromium
    chromium.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Open a page, its text or its path, without a network; no script may fail, nothing be asked
    for elsewhere."""
    said = []

    def open_(html, **options):
        path = html if isinstance(html, Path) else tmp_path / "report.html"
        if path is not html:
            path.write_text(html, encoding="utf-8")
        context = browser.new_context(offline=True, accept_downloads=True, **options)
        page = context.new_page()
        page.on("console", lambda m: said.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda r: said.append(r.url) if r.url.startswith("http") else None)
        page.goto(path.as_uri())
        return page

    yield open_
    assert said == []


@pytest.fixture
def phantom() -> Phantom:
    """A small made-up head."""
    return make_phantom(np.random.default_rng(0), **SMALL)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """`made_once(name, make)`: the folder that `make(folder)` fills, once for all workers."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def folder_of(name, make):
        folder, done = root / name, root / f"{name}.done"
        with FileLock(root / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                make(folder)
                done.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def heads(made_once) -> Path:
    """Six labelled subjects, as a user would lay them out."""

    def make(folder):
        for number in range(6):
            make_phantom(np.random.default_rng(number), **SMALL).write(folder / f"head{number}")

    return made_once("heads", make)


def stored(volume, order, flips=(1, 1, 1)):
    """The same image in the world, its array in another order."""
    turn = np.column_stack([order, flips])
    affine = volume.affine @ inv_ornt_aff(turn, volume.data.shape)
    return Volume(apply_orientation(volume.data, turn), affine, name=volume.name)


def to_stored(placement, slices):
    """All slices (N, H, W) on the scan's stored grid (X, Y, Z), float32."""
    canonical = np.moveaxis(placement.to_scan(slices), 0, placement.across)
    return Orientation.of(placement.scan.affine).undo(canonical).astype(np.float32)


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
def model(heads, made_once) -> Path:
    """A model that has learnt to find the phantoms' lesions."""

    def make(run):
        plan.start(run, small_settings(heads, steps=300, seed=1))
        loop.fit(run)

    return made_once("phantom-model", make)


@pytest.fixture(scope="session")
def foreign_model(model, tmp_path_factory) -> Path:
    """The same, as if other subjects had trained it."""
    folder = tmp_path_factory.mktemp("models") / "phantom-model"
    shutil.copytree(model, folder)
    card = load_card(folder)
    save_card(folder, replace(card, training={**card.training, "scans": []}))
    return folder


@pytest.fixture
def cohort(tmp_path):
    """Makes results of the given names, changed so, in a folder; gives it back."""
    flair, mask = a_head()

    def make(**subjects):
        for number, (name, changes) in enumerate(subjects.items()):
            folder = tmp_path / "out" / name
            folder.mkdir(parents=True)
            inputs = Inputs(flair=a_scan("F.nii.gz", f"{number + 100:064x}"))
            own = {"mask_sha256": f"{number:064x}", "inputs": inputs}
            a_record(flair, mask, **own | changes).write(folder / RECORD_FILE)
            (folder / REPORT_FILE).write_text("<title>its report</title>")
            (folder / KEY_SLICES_FILE).write_bytes(b"\x89PNG")
        return tmp_path / "out"

    return make
