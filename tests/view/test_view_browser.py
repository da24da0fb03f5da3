"""`leuko view` in a real browser: what is painted is what is saved."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from conftest import segmented
from leuko.cohort.files import EDITED_FILE
from leuko.io import nifti

pytestmark = pytest.mark.browser
PAINTED = "() => [...viewer.drawBitmap.keys()].filter((k) => viewer.drawBitmap[k])"


@pytest.fixture
def out(heads, model, tmp_path):
    head = heads / "head0"
    segmented(head / "FLAIR.nii.gz", head / "T1.nii.gz", tmp_path / "out", model=model)
    return tmp_path / "out"


@pytest.fixture
def command(out):
    """A running `leuko view`, which is killed at the end."""
    arguments = [sys.executable, "-m", "leuko.cli", "view", str(out), "--no-browser"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


@pytest.fixture
def address(command):
    """Its page."""
    return command.stdout.readline().split()[-1]


@pytest.fixture
def opened(browser, address):
    """Open the page; no script may fail, nothing be asked for elsewhere."""
    said, contexts = [], []

    def open_():
        context = browser.new_context(viewport={"width": 1000, "height": 700})
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on(
            "request",
            lambda r: None if r.url.startswith((address, "data:", "blob:")) else said.append(r.url),
        )
        page.goto(address)
        page.wait_for_selector("body[data-ready]", timeout=60_000)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert said == []


def saved(out):
    """The voxels of the corrected mask, as NiiVue counts them."""
    mask = nifti.read(out / EDITED_FILE).canonical().data
    return np.flatnonzero(mask.ravel(order="F")).tolist()


def stroke(page, length=60):
    box = page.locator("#canvas").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + length, y, steps=6)
    page.mouse.up()
    page.wait_for_timeout(200)


def save(page):
    page.keyboard.press("s")
    page.locator("#said:not(:empty)").wait_for()


def test_what_is_painted_erased_and_undone_is_what_is_saved(opened, out):
    page = opened()
    before = page.evaluate(PAINTED)
    automatic = (out / "wmh.nii.gz").read_bytes()
    page.locator("#planes").select_option("0")
    page.locator("#pen").fill("1")
    page.keyboard.press("b")
    stroke(page)
    painted = page.evaluate(PAINTED)
    assert len(set(painted) - set(before)) >= 5
    page.keyboard.press("e")
    stroke(page, 30)
    erased = page.evaluate(PAINTED)
    assert 0 < len(set(painted) - set(erased)) < len(set(painted) - set(before))
    page.keyboard.press("u")
    assert page.evaluate(PAINTED) == painted
    page.get_by_label("Your name").fill("A. Reader")
    page.keyboard.press("Tab")
    save(page)
    assert page.locator("#said").inner_text() == "saved"
    assert saved(out) == painted
    page.keyboard.press("2")
    page.locator("#said", has_text="verdict FAIL saved").wait_for()
    assert "FAIL,,,A. Reader" in (out / "verdicts" / "view_A._Reader.csv").read_text()
    assert (out / "wmh.nii.gz").read_bytes() == automatic
    page.locator("#numbers", has_text="corrected by A. Reader").wait_for(timeout=60_000)


def test_a_whole_lesion_is_deleted_and_added_again(opened):
    page = opened()
    before = page.evaluate(PAINTED)
    page.locator("#lesions button").first.click()
    inside = page.evaluate(
        """(painted) => { const [x, y, z] = [painted % state.shape[0],
        Math.floor(painted / state.shape[0]) % state.shape[1],
        Math.floor(painted / state.shape[0] / state.shape[1])];
        return [x, y, z]; }""",
        before[0],
    )
    page.evaluate("choose('delete')")
    page.evaluate("(voxel) => act(voxel)", inside)
    less = page.evaluate(PAINTED)
    assert 0 <= len(less) < len(before)
    assert before[0] not in less
    page.evaluate("choose('grow')")
    page.evaluate("(voxel) => act(voxel)", inside)
    assert before[0] in page.evaluate(PAINTED)
    page.keyboard.press("u")
    page.keyboard.press("u")
    assert page.evaluate(PAINTED) == before
    assert page.locator("#save").is_disabled()


def test_of_two_windows_the_second_does_not_overwrite_the_first(opened, out):
    first, second = opened(), opened()
    for page in (first, second):
        page.locator("#planes").select_option("0")
        page.keyboard.press("b")
    stroke(first)
    save(first)
    kept = saved(out)
    stroke(second, -60)
    save(second)
    assert "another window" in second.locator("#said").inner_text()
    assert saved(out) == kept


def test_a_killed_browser_loses_nothing_that_was_saved(browser, out, address):
    context = browser.new_context()
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector("body[data-ready]", timeout=60_000)
    page.locator("#planes").select_option("0")
    page.keyboard.press("b")
    stroke(page)
    save(page)
    painted = page.evaluate(PAINTED)
    stroke(page, -60)
    context.close()  # the page is not asked
    assert saved(out) == painted


def test_a_page_with_unsaved_corrections_says_that_the_command_has_ended(opened, command):
    page = opened()
    page.locator("#planes").select_option("0")
    page.keyboard.press("b")
    stroke(page)
    command.kill()
    said = page.locator("#said.bad", has_text="if the command has ended")
    said.wait_for(timeout=20_000)


def test_another_scan_and_maps_keep_what_was_painted(opened):
    page = opened()
    page.locator("#planes").select_option("0")
    page.keyboard.press("b")
    stroke(page)
    painted = page.evaluate(PAINTED)
    for selector, name in (("#scan", "t1"), ("#map", "probability"), ("#scan", "flair")):
        page.locator(selector).select_option(name)
        page.evaluate("() => state.arranged")
        names = page.evaluate("() => viewer.volumes.map((volume) => volume.name)")
        assert f"{name}.nii" in names
    assert page.evaluate(PAINTED) == painted


@pytest.fixture
def bare(out):
    """The result has neither T1 nor probability."""
    (out / "wmh_prob.nii.gz").unlink()
    record = json.loads((out / "run.json").read_text())
    del record["inputs"]["t1"]
    (out / "run.json").write_text(json.dumps(record))


@pytest.mark.usefixtures("bare")
def test_a_result_without_t1_and_probability_can_be_looked_at_and_painted(opened):
    page = opened()
    assert page.locator("#scan option").all_inner_texts() == ["FLAIR"]
    assert not page.get_by_label("add a lesion").is_visible()
    page.keyboard.press("g")
    assert page.get_by_label("look").is_checked()
    before = page.evaluate(PAINTED)
    page.locator("#planes").select_option("0")
    page.keyboard.press("b")
    stroke(page)
    assert len(page.evaluate(PAINTED)) > len(before)


def test_an_accessibility_checker_finds_nothing(opened):
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(opened())
    assert found.violations_count == 0, found.generate_report()


@pytest.mark.linux
def test_ctrl_c_ends_the_command(out):
    command = [sys.executable, "-m", "leuko.cli", "view", str(out), "--no-browser"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdout.readline().startswith("page")
        assert "Ctrl-C" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert err == ""
