"""The Python interface: what `import leuko` gives."""

import doctest
import json
import logging
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple

import nibabel as nib
import numpy as np
import pytest

import leuko
from conftest import assert_one_line_error
from leuko import results
from leuko.errors import LeukoError
from leuko.io.outputs import FILES
from leuko.segment import SegmentSettings
from phantoms import SMALL_MODEL, make_phantom

PUBLIC = [
    "LeukoError", "SegmentSettings", "Segmentation", "__version__", "compare", "evaluate",
    "load_model", "measure", "segment", "segment_cohort",
]  # fmt: skip


@pytest.fixture(scope="module")
def scans(heads):
    return [heads / "head0" / f"{name}.nii.gz" for name in ("FLAIR", "T1")]


@pytest.fixture(scope="module")
def loaded(model):
    return leuko.load_model(model, threads=1)


@pytest.fixture(scope="module")
def found(scans, loaded):
    return leuko.segment(str(scans[0]), t1=scans[1], model=loaded)


def run(code):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def voxels(image):
    return np.asarray(image.dataobj)


def test_the_public_names_are_few_and_there():
    assert dir(leuko) == PUBLIC
    assert all(getattr(leuko, name) is not None for name in PUBLIC)
    with pytest.raises(AttributeError, match="no attribute 'predict'"):
        leuko.predict  # noqa: B018


def test_import_loads_nothing_heavy():
    code = (
        "import sys, leuko\n"
        "print([name for name in ('numpy', 'nibabel', 'scipy', 'torch') if name in sys.modules])"
    )
    assert run(code) == "[]\n"


def test_segment_stays_the_function_when_its_module_is_imported():
    code = (
        "import leuko, leuko.segment, leuko.evaluation.evaluate, leuko.longitudinal.compare\n"
        "print([callable(f) for f in (leuko.segment, leuko.evaluate, leuko.compare)])"
    )
    assert run(code) == "[True, True, True]\n"


def test_the_result_is_what_the_command_writes(leuko, scans, model, found, tmp_path):
    options = ["--flair", scans[0], "--t1", scans[1]]
    found.save(tmp_path / "door")
    leuko("segment", *options, "--model", model, "-o", tmp_path / "b")
    for name in FILES:
        if name.endswith((".nii.gz", ".tsv")) and (tmp_path / "b" / name).exists():
            first, second = (tmp_path / folder / name for folder in ("door", "b"))
            if name.endswith(".tsv"):
                assert first.read_text() == second.read_text()
            else:
                np.testing.assert_array_equal(voxels(nib.load(first)), voxels(nib.load(second)))
    records = [json.loads((tmp_path / f / "run.json").read_text()) for f in ("door", "b")]
    for record in records:
        del record["seconds"]
    assert records[0] == records[1]


def test_images_in_memory_give_the_same_mask_as_their_files(scans, loaded, found, tmp_path):
    images = [nib.load(path) for path in scans]
    memory = leuko.segment(images[0], t1=images[1], model=loaded)
    np.testing.assert_array_equal(voxels(memory.mask), voxels(found.mask))
    np.testing.assert_array_equal(memory.mask.affine, images[0].affine)
    memory.save(tmp_path / "out")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["inputs"]["flair"]["path"] is None
    assert len(record["inputs"]["flair"]["sha256"]) == 64
    stored = nib.load(tmp_path / "out" / "wmh.nii.gz")
    np.testing.assert_array_equal(voxels(stored), voxels(found.mask))


def test_an_image_in_memory_without_a_header_of_nifti_is_refused(loaded):
    image = nib.spatialimages.SpatialImage(np.ones((4, 4, 4), np.float32), np.eye(4))
    with pytest.raises(leuko.LeukoError, match="is a SpatialImage; expected a NIfTI or MGH image"):
        leuko.segment(image, model=loaded)


def test_numbers_and_images_agree(found):
    mask, probability = voxels(found.mask), voxels(found.probability)
    assert set(np.unique(mask)) == {0, 1}
    assert probability.dtype == np.float32
    assert (probability[mask > 0] > 0).all()
    voxel_ml = abs(np.linalg.det(found.mask.affine[:3, :3])) / 1000
    assert found.volume_ml == pytest.approx(mask.sum() * voxel_ml)
    assert sum(row.volume_ml for row in found.analysis.lesions) == pytest.approx(found.volume_ml)


def test_lesions_are_rows_and_with_pandas_a_table(found, monkeypatch):
    rows = found.analysis.lesions
    monkeypatch.setattr(results, "find_spec", lambda _: None)
    assert found.lesions is rows
    pandas = type(sys)("pandas")
    pandas.DataFrame = lambda content, columns: (content, columns)
    monkeypatch.setattr(results, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    content, columns = found.lesions
    assert [row["volume_ml"] for row in content] == [row.volume_ml for row in rows]
    assert list(content[0]) == columns


def test_a_result_prints_in_a_few_lines(found):
    lines = repr(found).splitlines()
    assert lines[0].startswith("FLAIR.nii.gz, model ")
    assert f"WMH {found.volume_ml:.2f} mL" in lines[1]
    assert len(lines) <= 5 + len(found.findings)
    html = found._repr_html_()
    assert html.count("data:image/jpeg;base64,") == 1
    assert f"{found.volume_ml:.2f} mL" in html


def test_nothing_is_printed_written_or_left_behind(scans, loaded, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    handlers, threads = list(logging.getLogger().handlers), threading.enumerate()
    level = logging.getLogger("leuko").level
    leuko.segment(*scans, model=loaded)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []
    assert logging.getLogger().handlers == handlers
    assert logging.getLogger("leuko").level == level
    assert threading.enumerate() == threads


def test_calls_in_threads_do_not_mix(heads, loaded):
    pairs = [[heads / f"head{k}" / f"{name}.nii.gz" for name in ("FLAIR", "T1")] for k in range(3)]
    alone = [leuko.segment(*pair, model=loaded) for pair in pairs]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda pair: leuko.segment(*pair, model=loaded), pairs))
    for first, second in zip(alone, together, strict=True):
        np.testing.assert_array_equal(voxels(first.mask), voxels(second.mask))
        assert first.findings == second.findings


def test_the_own_mask_measured_gives_the_own_numbers(scans, loaded, found, tmp_path):
    measured = leuko.measure(found.mask, *scans, model=loaded)
    assert measured.volume_ml == found.volume_ml
    assert measured.analysis.regions == found.analysis.regions
    assert measured.analysis.intracranial_ml == found.analysis.intracranial_ml
    assert measured.record().tissue_ml == found.record().tissue_ml
    np.testing.assert_equal(
        [astuple(row) for row in measured.analysis.lesions],
        [astuple(row) for row in found.analysis.lesions],
    )
    assert measured.volume_interval_ml is None
    measured.save(tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Given mask:" in page
    assert "smallest lesion mm3" not in page
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["command"] == "measure"
    assert set(record["inputs"]) == {"flair", "t1", "mask"}


def test_a_mask_on_another_grid_is_brought_to_the_flair(scans, loaded, found):
    mask = nib.as_closest_canonical(found.mask)
    turned = nib.Nifti1Image(voxels(mask)[::-1, :, ::-1], mask.affine @ flipped(mask.shape))
    measured = leuko.measure(turned, *scans, model=loaded)
    np.testing.assert_array_equal(voxels(measured.mask), voxels(found.mask))


def test_a_mask_on_the_grid_of_a_t1_follows_its_registration(scans, loaded, found):
    t1 = nib.load(scans[1])
    moved = t1.affine.copy()
    moved[:3, 3] += 12, -8, 5
    elsewhere = nib.Nifti1Image(t1.get_fdata(), moved)
    mask = nib.Nifti1Image(voxels(found.mask), moved)
    measured = leuko.measure(mask, scans[0], elsewhere, model=loaded)
    assert measured.alignment.moved_mm == pytest.approx(np.linalg.norm([12, 8, 5]), abs=1)
    kept = voxels(measured.mask)[voxels(found.mask) > 0].mean()
    assert kept > 0.6  # by the header alone no voxel would be
    assert [f.level for f in measured.findings if f.code == "mask-grid"]


def test_a_resampled_mask_tells_how_its_volume_changed(scans, loaded, found):
    mask = found.mask
    coarse = nib.Nifti1Image(voxels(mask)[::2], mask.affine @ np.diag([2, 1, 1, 1]))
    measured = leuko.measure(coarse, *scans, model=loaded)
    (finding,) = (f for f in measured.findings if f.code == "mask-grid")
    before, after = re.findall(r"(\S+) mL", finding.text)
    assert float(before) == pytest.approx(volume_ml(coarse), abs=0.01)
    assert float(after) == pytest.approx(measured.volume_ml, abs=0.01)
    assert float(before) != float(after)


def test_a_mask_beside_the_flair_is_refused(scans, loaded, found):
    far = found.mask.affine.copy()
    far[0, 3] += 500
    with pytest.raises(LeukoError, match=r"no voxel of .* lies within FLAIR"):
        leuko.measure(nib.Nifti1Image(voxels(found.mask), far), *scans, model=loaded)


def test_of_several_labels_those_that_are_wmh_must_be_named(scans, loaded, found):
    wmh = voxels(found.mask)
    labels = wmh.astype(np.int16) * 99
    labels[2:6, 2:6, 2:4] = 16
    several = nib.Nifti1Image(labels, found.mask.affine)
    with pytest.raises(LeukoError, match=r"2 labels: 16, 99; say which of them are WMH"):
        leuko.measure(several, *scans, model=loaded)
    settings = leuko.SegmentSettings(lesion_labels=(99,))
    measured = leuko.measure(several, *scans, model=loaded, settings=settings)
    np.testing.assert_array_equal(voxels(measured.mask), wmh)
    assert measured.record().settings.lesion_labels == (99,)


@pytest.mark.parametrize("label", [0, -1])
def test_a_label_that_cannot_be_wmh_is_refused(scans, leuko, tmp_path, label):
    with pytest.raises(LeukoError, match=rf"--lesion-label 99, {label}: labels of WMH are 1 or"):
        SegmentSettings(lesion_labels=(99, label))
    arguments = ["--flair", scans[0], "--lesion-label", label, "-o", tmp_path / "out"]
    assert_one_line_error(leuko("measure", scans[0], *arguments), f"--lesion-label {label}:")
    assert not (tmp_path / "out").exists()


def test_an_empty_mask_has_no_volume_and_a_note(scans, loaded, found):
    empty = nib.Nifti1Image(np.zeros_like(voxels(found.mask)), found.mask.affine)
    measured = leuko.measure(empty, *scans, model=loaded)
    assert (measured.volume_ml, measured.analysis.lesions) == (0, [])
    assert ("note", "mask") in [(f.level, f.code) for f in measured.findings]


def test_a_mask_of_another_person_is_not_to_be_used(tmp_path):
    """Its voxels are not brighter than the white matter around them."""
    model = leuko.load_model(SMALL_MODEL, threads=1)
    make_phantom(np.random.default_rng(0), shape=(64, 80, 18), spacing_mm=(2.7, 2.6, 7.0)).write(
        tmp_path
    )
    scans = [tmp_path / f"{name}.nii.gz" for name in ("FLAIR", "T1")]
    own = nib.load(tmp_path / "wmh.nii.gz")
    turned = nib.Nifti1Image(voxels(own)[:, ::-1], own.affine)
    codes = [
        {f.code: f.level for f in leuko.measure(mask, *scans, model=model).findings}
        for mask in (own, turned)
    ]
    assert "faint-mask" not in codes[0]
    assert codes[1]["faint-mask"] == "do not use"


def volume_ml(image):
    return np.count_nonzero(image.dataobj) * abs(np.linalg.det(image.affine[:3, :3])) / 1000


def flipped(shape):
    matrix = np.diag([-1.0, 1.0, -1.0, 1.0])
    matrix[:3, 3] = shape[0] - 1, 0, shape[2] - 1
    return matrix


@pytest.mark.parametrize("name", [name for name in PUBLIC if name[0].islower()])
def test_the_examples_run(name, heads, tmp_path, monkeypatch):
    for k, folder in enumerate(("", "BASELINE", "FOLLOWUP")):
        shutil.copytree(heads / f"head{min(k, 1)}", tmp_path / folder, dirs_exist_ok=True)
    shutil.copy(tmp_path / "wmh.nii.gz", tmp_path / "reference.nii.gz")
    (tmp_path / "cohort.tsv").write_text("id\tflair\tt1\na\tFLAIR.nii.gz\tT1.nii.gz\n")
    monkeypatch.chdir(tmp_path)
    (example,) = doctest.DocTestFinder(recurse=False).find(getattr(leuko, name), name, globs={})
    assert example.examples
    results = doctest.DocTestRunner().run(example)
    assert results.failed == 0
