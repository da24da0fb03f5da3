"""Filling: lesions of a T1 look like the white matter around them, and nothing else changes."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats

from leuko.cohort import derivatives
from leuko.errors import LeukoError
from leuko.io import nifti
from leuko.io.inputs import Scan, read
from leuko.lesions.filling import fill, filling_from_flair
from leuko.segment import SegmentSettings, segment
from leuko.volume import Volume
from phantoms import SMALL_MODEL

SHAPE = (90, 100, 70)
GREY, WHITE, LESION, NOISE = 600.0, 1000.0, 700.0, 40.0


@pytest.fixture(scope="module")
def head():
    """A ball of white matter in grey matter with textured noise, a bias field and lesions."""
    rng = np.random.default_rng(7)
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    far = np.linalg.norm((grid - np.array(SHAPE) / 2) / np.array([40, 45, 32]), axis=-1)
    white = far < 0.85
    noise = scipy.ndimage.gaussian_filter(rng.normal(size=SHAPE), 0.7)
    field = 1 + 0.15 * (grid[..., 0] - 45) / 45
    mask = np.zeros(SHAPE, bool)
    for centre in rng.permutation(np.argwhere(far < 0.7))[:12]:
        mask |= np.linalg.norm(grid - centre, axis=-1) < rng.uniform(2, 8)
    tissue = np.where(mask, LESION, np.where(white, WHITE, np.where(far < 1, GREY, 0)))
    image = tissue * field + NOISE * noise / noise.std()
    return Volume(image.astype(np.int16), np.eye(4), name="T1"), mask, white, field


@pytest.fixture(scope="module")
def filled(head):
    t1, mask, white, _ = head
    return fill(t1, mask, white)


def flat(volume, field):
    """Grey values without the bias field."""
    return volume.data / field


def around(mask, white):
    far = scipy.ndimage.distance_transform_edt(~mask)
    return white & (far > 2) & (far < 10)


def test_only_lesion_voxels_change_and_the_type_and_grid_stay(head, filled):
    t1, mask, _, _ = head
    np.testing.assert_array_equal(filled.data[~mask], t1.data[~mask])
    assert filled.data.dtype == np.int16
    assert filled.shares_grid_with(t1)
    assert np.count_nonzero(filled.data[mask] != t1.data[mask]) > 0.95 * mask.sum()


def test_filled_voxels_have_the_histogram_of_the_white_matter_around(head, filled):
    t1, mask, white, field = head
    values = flat(filled, field)
    inside, beside = values[mask], values[around(mask, white)]
    assert abs(inside.mean() - beside.mean()) < 0.1 * beside.std()
    assert 0.9 < inside.std() / beside.std() < 1.1
    # 0.1 is far below the distance of lesions from white matter, which is 1.
    assert scipy.stats.ks_2samp(inside, beside).statistic < 0.1
    assert scipy.stats.ks_2samp(flat(t1, field)[mask], beside).statistic > 0.9


def test_the_texture_of_the_noise_stays(head, filled):
    _, mask, white, field = head
    values = flat(filled, field)

    def similarity(where):
        both = where[1:] & where[:-1]
        return np.corrcoef(values[1:][both], values[:-1][both])[0, 1]

    assert similarity(mask) > 0.6 * similarity(around(mask, white)) > 0.3


def test_the_same_input_gives_the_same_bits(head, filled):
    t1, mask, white, _ = head
    np.testing.assert_array_equal(fill(t1, mask, white).data, filled.data)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_every_data_type_stays(head, dtype):
    t1, mask, white, _ = head
    scaled = t1.with_data((t1.data.clip(0) / 8).astype(dtype))
    filled = fill(scaled, mask, white)
    assert filled.data.dtype == dtype
    assert filled.data[mask].mean() == pytest.approx(WHITE / 8, rel=0.05)


def test_a_lesion_far_from_white_matter_gets_the_mean_of_all(head):
    t1, _, white, _ = head
    alone = np.zeros(SHAPE, bool)
    alone[:3, :3, :3] = True
    near = white.copy()
    near[:60] = False  # more than 50 mm away
    filled = fill(t1, alone, near)
    assert filled.data[alone].mean() == pytest.approx(t1.data[near].mean(), rel=0.05)


def test_without_normal_white_matter_nothing_is_filled(head):
    t1, mask, _, _ = head
    with pytest.raises(LeukoError, match="0 voxels of normal white matter, expected 100 or more"):
        fill(t1, mask, np.zeros(SHAPE, bool))


def test_without_lesions_the_t1_stays(head):
    t1, _, white, _ = head
    assert fill(t1, np.zeros(SHAPE, bool), white) is t1


def test_lesions_of_a_flair_in_another_position_are_filled_in_place(head):
    t1, mask, white, field = head
    turn = np.eye(4)
    turn[:3, :3] = [[np.cos(0.2), -np.sin(0.2), 0], [np.sin(0.2), np.cos(0.2), 0], [0, 0, 1]]
    turn[:3, 3] = 4, -3, 2
    flair_to_t1 = turn
    # The same voxels, at the place where the FLAIR sees them.
    on_flair = [Volume(part, np.linalg.inv(turn) @ t1.affine) for part in (mask, white)]
    on_t1, values = filling_from_flair(t1, *on_flair, flair_to_t1)
    np.testing.assert_array_equal(on_t1, mask)
    assert (values / field[mask]).mean() == pytest.approx(WHITE, rel=0.01)


@pytest.fixture(scope="module")
def result(heads):
    head = heads / "head0"
    settings = SegmentSettings(model=str(SMALL_MODEL), fill=True)
    return segment(head / "FLAIR.nii.gz", head / "T1.nii.gz", settings=settings)


def test_segmenting_fills_the_t1_on_its_own_grid(result, heads, tmp_path):
    result.save(tmp_path / "out")
    given = nib.load(heads / "head0" / "T1.nii.gz")
    filled = nib.load(tmp_path / "out" / "t1_filled.nii.gz")
    assert filled.shape == given.shape
    assert filled.get_data_dtype() == given.get_data_dtype()
    np.testing.assert_array_equal(filled.affine, given.affine)
    mask = np.asarray(result.mask.dataobj) > 0
    before, after = np.asarray(given.dataobj), np.asarray(filled.dataobj)
    np.testing.assert_array_equal(after[~mask], before[~mask])
    assert after[mask].mean() > before[mask].mean()
    np.testing.assert_array_equal(after, np.asarray(result.filled_t1.dataobj))
    assert json.loads((tmp_path / "out" / "run.json").read_text())["settings"]["fill"] is True


def scaled(t1, folder):
    """As integers with a slope and an intercept, so that the background is 5 and not 0."""
    image = nib.Nifti1Image(t1.astype(np.int16), nib.load(folder / "T1.nii.gz").affine)
    image.header.set_slope_inter(0.25, 5)
    image.header["descrip"] = b"a scanner"
    image.header["cal_max"] = 900
    nib.save(image, folder / "scaled.nii")
    return folder / "scaled.nii"


def dark(t1, folder):
    """A background of -1024 in floating point."""
    image = nib.Nifti1Image(
        np.where(t1 > 20, t1, -1024).astype(np.float32), nib.load(folder / "T1.nii.gz").affine
    )
    nib.save(image, folder / "dark.nii.gz")
    return folder / "dark.nii.gz"


def two_files(t1, folder):
    image = nib.load(scaled(t1, folder))
    pair = nib.Nifti1Pair(image.dataobj.get_unscaled(), image.affine, image.header)
    pair.header.set_slope_inter(0.25, 5)
    nib.save(pair, folder / "pair.img")
    return folder / "pair.img"


def four_axes(t1, folder):
    image = nib.Nifti1Image(t1.astype(">i2")[..., None], nib.load(folder / "T1.nii.gz").affine)
    nib.save(nib.Nifti2Image.from_image(image), folder / "four.nii.gz")
    return folder / "four.nii.gz"


def loaded(t1, folder):
    return nib.load(two_files(t1, folder))


def in_memory(t1, folder):
    data = np.where(t1 > 20, t1, -1).astype(np.int16)
    return nib.Nifti1Image(data, nib.load(folder / "T1.nii.gz").affine)


def of_freesurfer(t1, folder):
    data = np.where(t1 > 20, t1, -1).astype(np.float32)
    nib.save(nib.MGHImage(data, nib.load(folder / "T1.nii.gz").affine), folder / "t1.mgz")
    return folder / "t1.mgz"


def raw(image):
    data = image.dataobj
    return data.get_unscaled() if nib.is_proxy(data) else np.asanyarray(data)


@pytest.mark.parametrize(
    "make", [scaled, dark, two_files, four_axes, loaded, in_memory, of_freesurfer]
)
def test_the_t1_keeps_its_header_and_every_stored_value_outside_the_mask(make, heads, tmp_path):
    shutil.copytree(heads / "head0", tmp_path / "head")
    head = tmp_path / "head"
    given = make(np.asarray(nib.load(head / "T1.nii.gz").dataobj), head)
    settings = SegmentSettings(model=str(SMALL_MODEL), fill=True, alignment="never")
    found = segment(head / "FLAIR.nii.gz", given, settings=settings)
    found.save(tmp_path / "out")
    before = nib.load(given) if isinstance(given, Path) else given
    after = nib.load(tmp_path / "out" / "t1_filled.nii.gz")
    mask = np.asarray(found.mask.dataobj) > 0
    assert raw(after).shape == raw(before).shape
    was, now = (raw(image).reshape(mask.shape) for image in (before, after))
    np.testing.assert_array_equal(now[~mask], was[~mask])
    assert np.count_nonzero(now[mask] != was[mask]) > 0.9 * mask.sum()
    assert after.get_data_dtype().newbyteorder("=") == before.get_data_dtype().newbyteorder("=")
    np.testing.assert_array_equal(after.affine, before.affine)
    if not isinstance(before, nib.MGHImage):
        for name in ("descrip", "cal_max", "sform_code", "qform_code", "pixdim", "xyzt_units"):
            assert (after.header[name] == before.header[name]).all()
        if nib.is_proxy(before.dataobj):
            assert (after.dataobj.slope, after.dataobj.inter) == (
                before.dataobj.slope,
                before.dataobj.inter,
            )
    values = np.asanyarray(after.dataobj)
    np.testing.assert_array_equal(values, np.asanyarray(found.filled_t1.dataobj))
    assert (
        values.reshape(mask.shape)[mask].mean()
        > np.asanyarray(before.dataobj).reshape(mask.shape)[mask].mean()
    )


def test_a_t1_from_dicom_is_stored_with_its_background(phantom, tmp_path):
    pytest.importorskip("highdicom")
    from dicom_series import write_series

    made = phantom.t1.with_data(np.where(phantom.t1.data > 60, phantom.t1.data, -1024))
    scan = read(write_series(tmp_path / "t1", made))
    background = scan.volume.data == 0
    assert background.mean() > 0.1
    stored = np.asanyarray(nifti.opened(scan.stored()).dataobj)
    assert (stored[background] == -1024).all()
    np.testing.assert_array_equal(stored[~background], scan.volume.data[~background])


def test_a_t1_that_became_another_file_is_not_filled(heads, monkeypatch):
    head = heads / "head0"
    small = nib.Nifti1Image(np.ones((5, 5, 5), np.int16), np.eye(4))
    monkeypatch.setattr(Scan, "stored", lambda _: small.to_bytes())
    settings = SegmentSettings(model=str(SMALL_MODEL), fill=True)
    found = segment(head / "FLAIR.nii.gz", head / "T1.nii.gz", settings=settings)
    assert found.filled_t1 is None
    assert "fill" in [finding.code for finding in found.findings]


def test_a_model_without_white_matter_fills_nothing_and_says_so(heads, model, tmp_path):
    head = heads / "head0"
    settings = SegmentSettings(model=str(model), fill=True)
    found = segment(head / "FLAIR.nii.gz", head / "T1.nii.gz", settings=settings)
    assert found.filled_t1 is None
    assert [finding.code for finding in found.findings if "are not filled" in finding.text] == [
        "fill"
    ]
    found.save(tmp_path / "out")
    assert not (tmp_path / "out" / "t1_filled.nii.gz").exists()


def test_filling_needs_a_t1(heads):
    settings = SegmentSettings(model=str(SMALL_MODEL), fill=True)
    with pytest.raises(LeukoError, match="--fill fills the lesions of a T1; give one"):
        segment(heads / "head0" / "FLAIR.nii.gz", settings=settings)


def test_a_filled_t1_has_a_name_without_the_space_of_the_flair(result, tmp_path):
    result.save(tmp_path / "native")
    out = tmp_path / "anat"
    out.mkdir()
    sources = ["bids:raw:sub-01/anat/sub-01_FLAIR.nii.gz"]
    derivatives.arrange(tmp_path / "native", out, "sub-01_space-FLAIR_", sources)
    about = json.loads((out / "sub-01_desc-filled_T1w.json").read_text())
    assert about["Sources"] == sources
    assert "SpatialReference" not in about
    filled = nifti.read(out / "sub-01_desc-filled_T1w.nii.gz")
    np.testing.assert_array_equal(filled.data, np.asarray(result.filled_t1.dataobj))
    derivatives.drop_older(out, "sub-01_space-FLAIR_", set())
    assert not list(out.glob("*filled*"))
