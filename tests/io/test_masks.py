"""What stored labels and masks mean: right, or refused with the true reason."""

import nibabel as nib
import numpy as np
import pytest
import scipy.ndimage

from leuko.errors import LeukoError
from leuko.evaluation.evaluate import evaluate
from leuko.io import nifti
from phantoms import make_phantom

SHAPE = (20, 18, 12)
LESION = np.zeros(SHAPE, bool)
LESION[4:8, 5:9, 3:6] = LESION[12:14, 10:12, 7:9] = True
AFFINE = np.diag([2.0, 2, 3, 1])
JITTER = 4e-4 * np.sin(np.indices(SHAPE).sum(axis=0))


def stored(path, data, number_type=None, slope=None, inter=0.0):
    """A file; `slope` and `inter` are those of an integer type, data what they give."""
    if slope is None:
        image = nib.Nifti1Image(np.asarray(data, number_type), AFFINE)
    else:
        raw = np.rint((np.asarray(data) - inter) / slope).astype(number_type)
        image = nib.Nifti1Image(raw, AFFINE)
        image.header.set_slope_inter(slope, inter)
    nib.save(image, path)
    return path


def by_nibabel(path, data, number_type):
    """As `get_fdata` and `nib.save` do it: floats under an integer header, with a scale."""
    header = nib.Nifti1Header()
    header.set_data_dtype(number_type)
    nib.save(nib.Nifti1Image(np.asarray(data, float), AFFINE, header), path)
    return path


WAYS = {
    "uint8": lambda p, d: stored(p, d, np.uint8),
    "int8": lambda p, d: stored(p, d, np.int8),
    "uint32": lambda p, d: stored(p, d, np.uint32),
    "float32": lambda p, d: stored(p, d, np.float32),
    "float64, rounded": lambda p, d: stored(p, 0.9999999998 * d, np.float64),
    "float32, jittered": lambda p, d: stored(p, d + JITTER),
    "NaN outside": lambda p, d: stored(p, np.where(d > 0, d, np.nan), np.float32),
    "uint8 by nibabel": lambda p, d: by_nibabel(p, d, np.uint8),
    "int16 by nibabel": lambda p, d: by_nibabel(p, d, np.int16),
    "uint8, slope 1/255": lambda p, d: stored(p, d, np.uint8, 1 / 255),
    "int8, intercept": lambda p, d: stored(p, d, np.int8, 1 / 100, 1.0),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_a_reference_is_read_however_its_labels_were_stored(tmp_path, way):
    labels = LESION.astype(float)
    labels[0, 0, :2] = 2 if "1/255" not in way else 0
    path = WAYS[way](tmp_path / "wmh.nii.gz", labels)
    np.testing.assert_array_equal(nifti.read_labels(path, values=(0, 1, 2)).data, labels)


@pytest.mark.parametrize(
    ("way", "value"),
    [(way, 1) for way in WAYS]
    + [("uint32", value) for value in (255, 2000, 70000)]
    + [
        (way, value)
        for way in ("float32", "NaN outside", "uint8 by nibabel", "int16 by nibabel")
        for value in (0.004, 2.3, 255, 2000, 70000)
    ],
)
def test_a_mask_is_what_is_not_zero(tmp_path, caplog, way, value):
    path = WAYS[way](tmp_path / "mask.nii.gz", value * LESION.astype(float))
    np.testing.assert_array_equal(nifti.read_mask(path).data, LESION)
    assert all("NaN voxels are read as background" in said for said in caplog.messages)


@pytest.mark.parametrize("value", [255, 1000, 2000, 65535])
def test_a_white_reference_is_its_mask_and_a_warning_says_so(tmp_path, caplog, value):
    truth = stored(tmp_path / "truth.nii.gz", value * LESION, np.uint16)
    found = stored(tmp_path / "found.nii.gz", LESION, np.uint8)
    row = evaluate(truth, found)
    assert row["dsc"] == 1
    assert row["reference_ml"] == pytest.approx(LESION.sum() * 12 / 1000)
    assert caplog.messages == [f"{truth} is a mask of 0 and {value}; {value} is read as 1"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (-1.0 * LESION, "values -1; .* values below 0 are background"),
        (2.0 * LESION - 1, "values -1; .* values below 0 are background"),
        (3 * LESION, "values 3; .* if 3 means 1, replace it by 1"),
        (0.3 * LESION, "values 0.3; .* if 0.3 means 1, replace it by 1"),
        (
            np.where(LESION, 1, 70000 * (np.indices(SHAPE)[0] > 16)),
            "values 70000; .* check that this is the label file, or replace",
        ),
        (np.where(LESION, 0.4, 0.1), "values 0.1, 0.4; .* not a probability map"),
        (np.where(LESION, np.inf, 0), "infinite voxels"),
    ],
)
def test_labels_that_mean_nothing_known_are_refused_with_the_reason(tmp_path, data, reason):
    path = stored(tmp_path / "wmh.nii.gz", data, np.float64)
    with pytest.raises(LeukoError, match=rf"wmh\.nii\.gz (holds|has) .*{reason}"):
        nifti.read_labels(path, values=(0, 1, 2))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (np.where(LESION, 0.8, 0.01), "holds probabilities, not a mask; 0.5 or more counts"),
        (np.where(LESION, 1.1, -0.1) + 0.01 * np.indices(SHAPE)[0] / 20, "0.5 or more counts"),
        (np.where(LESION, np.arange(SHAPE[2]) // 6 + 1, 0), "holds 2 labels above 0; all count"),
        (np.where(LESION, 1, -1), "values below 0 (from -1) are read as background"),
    ],
)
def test_what_is_more_than_a_mask_is_read_with_a_warning(tmp_path, caplog, data, said):
    path = stored(tmp_path / "mask.nii.gz", data, np.float64)
    np.testing.assert_array_equal(nifti.read_mask(path).data, LESION)
    assert len(caplog.messages) == 1
    assert said in caplog.messages[0]
    assert str(path) in caplog.messages[0]


@pytest.mark.parametrize("count", [17, 300, 70000])
def test_lesions_by_number_are_a_mask_however_many_there_are(tmp_path, count):
    numbers = np.zeros((100, 100, 100), np.int32)
    places = np.flatnonzero(np.indices(numbers.shape).sum(axis=0) % 2 == 0)[:count]
    numbers.flat[places] = np.arange(1, count + 1)
    path = tmp_path / "lesions.nii.gz"
    nib.save(nib.Nifti1Image(numbers, AFFINE), path)
    np.testing.assert_array_equal(nifti.read_mask(path).data, numbers > 0)


def scan(seed=0):
    x, y, z = np.indices(SHAPE)
    inside = (x - 10) ** 2 / 80 + (y - 9) ** 2 / 60 + (z - 6) ** 2 / 25 < 1
    return np.where(inside, 400 + np.random.default_rng(seed).normal(0, 40, SHAPE), 0)


SCANS = {
    "int16": scan().astype(np.int16),
    "uint8": (scan() / 3).astype(np.uint8),
    "float32": scan().astype(np.float32),
    "0 to 1": scan() / scan().max(),
    "z-scores": (scan() - 400) / 40,
    "-1024 around it": np.where(scan() > 0, scan(), -1024).astype(np.int16),
}


@pytest.mark.parametrize("kind", SCANS)
def test_a_scan_is_no_mask(tmp_path, kind):
    path = stored(tmp_path / "flair.nii.gz", SCANS[kind])
    with pytest.raises(LeukoError, match=r"flair\.nii\.gz holds \d+ values .* as a scan does"):
        nifti.read_mask(path)


@pytest.mark.parametrize("levels", [5, 9, 11, 13, 16])
@pytest.mark.parametrize("blur_voxels", [0, 0.5])
def test_a_scan_of_few_grey_values_is_no_mask(tmp_path, levels, blur_voxels):
    flair = make_phantom(np.random.default_rng(0), shape=(54, 66, 23), spacing_mm=(3, 3, 6)).flair
    smooth = scipy.ndimage.gaussian_filter(flair.data.astype(float), blur_voxels)
    noise = np.random.default_rng(1).normal(0, 0.1 if levels == 5 else 0.03, smooth.shape)
    bright = smooth / np.percentile(smooth, 99) + noise * (smooth > 0.1 * smooth.max())
    grey = np.rint(levels * np.clip(bright, 0, 1))
    path = stored(tmp_path / "flair.nii.gz", grey, np.uint8)
    with pytest.raises(LeukoError, match=rf"holds {levels} values above 0, .* as a scan does"):
        nifti.read_mask(path)


def rated_lesions():
    """How many of three raters call a voxel a lesion: each lesion of theirs lies elsewhere."""
    rng = np.random.default_rng(0)
    votes = np.zeros((40, 40, 30))
    for centre in rng.integers(4, (36, 36, 26), (30, 3)):
        for moved in centre + rng.integers(-1, 2, (3, 3)):
            votes[tuple(slice(k, k + 2) for k in moved)] += 1
    return votes


@pytest.mark.parametrize("kind", ["tissues", "coarse tissues", "12 sectors", "raters"])
def test_a_label_map_of_few_labels_is_a_mask(tmp_path, caplog, kind):
    labels = {
        "tissues": lambda: tissues(3),
        "coarse tissues": lambda: tissues(4),
        "12 sectors": lambda: np.where(tissues(3) > 0, 1 + np.indices((54, 66, 23))[1] // 6, 0),
        "raters": rated_lesions,
    }[kind]()
    path = stored(tmp_path / "labels.nii.gz", labels, np.uint8)
    np.testing.assert_array_equal(nifti.read_mask(path).data, labels > 0)
    assert f"holds {len(np.unique(labels)) - 1} labels above 0; all count" in caplog.text


def tissues(spacing_mm):
    spacing = (spacing_mm, spacing_mm, 6)
    phantom = make_phantom(np.random.default_rng(0), shape=(54, 66, 23), spacing_mm=spacing)
    return phantom.tissue.data


@pytest.mark.parametrize("data", [-1 * LESION, LESION + 1, LESION - 1.0])
def test_a_mask_has_background_and_something_above_it(tmp_path, data):
    path = stored(tmp_path / "mask.nii.gz", data, np.int16)
    with pytest.raises(LeukoError, match=r"mask\.nii\.gz holds values from .* with 0 outside"):
        nifti.read_mask(path)


def test_probabilities_are_within_0_and_1_but_for_rounding(tmp_path):
    path = stored(tmp_path / "prob.nii.gz", LESION, np.uint8, 1 / 255)
    data = nifti.read_probability(path).data
    assert data.max() == 1
    np.testing.assert_array_equal(data > 0.5, LESION)
    with pytest.raises(LeukoError, match="expected probabilities"):
        nifti.read_probability(stored(tmp_path / "no.nii.gz", 1.01 * LESION, np.float32))


def test_named_labels_are_the_mask(tmp_path, caplog):
    labels = LESION * 99.0
    labels[0, 0, :2] = 41
    path = stored(tmp_path / "seg.nii.gz", labels, np.int16)
    np.testing.assert_array_equal(nifti.read_mask(path, labels=(99,)).data, LESION)
    np.testing.assert_array_equal(nifti.read_mask(path, labels=(99, 41)).data, labels > 0)
    assert not caplog.text
    assert not nifti.read_mask(path, labels=(77,)).data.any()
    assert "has no voxel of label 77; it holds 0, 41, 99" in caplog.text
    with pytest.raises(LeukoError, match="2 labels: 41, 99; say which of them are WMH"):
        nifti.read_mask(path, labels=())
    with pytest.raises(LeukoError, match="not whole numbers"):
        nifti.read_mask(stored(tmp_path / "p.nii.gz", LESION * 0.3, np.float32), labels=(1,))
