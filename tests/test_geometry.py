"""One head, stored in every way that scans come: the same mask, and it overlays in every reader."""

import gzip
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813, the name in its own documentation
from scipy.spatial.transform import Rotation

from conftest import SMALL, segmented, stored
from leuko import results
from leuko.io import nifti
from leuko.volume import Volume
from phantoms import make_phantom

ORDERS = list(product(permutations(range(3)), product((1, -1), repeat=3)))
FORMS = ("sform", "qform")


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """Masks are tested here; to draw a report takes longer than to find one."""
    monkeypatch.setattr(results, "_write_report", lambda *_: None)


@pytest.fixture(scope="module")
def head():
    return make_phantom(np.random.default_rng(99), **{**SMALL, "lesions": 40})


@pytest.fixture(scope="module")
def expected(head, model, tmp_path_factory):
    """The mask of the head as it was made: axes run R, A, S."""
    folder = tmp_path_factory.mktemp("as-made")
    mask = found(head.flair, head.t1, model, folder)
    assert mask.data.sum() > 200
    return mask


def found(flair, t1, model, folder):
    """The mask that is written for two volumes given as files."""
    for name, volume in (("FLAIR", flair), ("T1", t1)):
        nifti.write(folder / f"{name}.nii.gz", volume)
    return masked(folder / "FLAIR.nii.gz", folder / "T1.nii.gz", model, folder)


def masked(flair, t1, model, folder):
    segmented(flair, t1, folder / "out", model=model)
    return nifti.read_mask(folder / "out" / "wmh.nii.gz")


def dice(one, other):
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_the_mask_is_the_same_in_all_48_storage_orders(head, model, expected, tmp_path, order):
    number = ORDERS.index(order)
    other_order = ORDERS[(number * 7 + 5) % len(ORDERS)]
    number_type = (np.int16, np.float32, np.float64)[number % 3]
    flair, t1 = stored(head.flair, *order), stored(head.t1, *other_order)
    flair, t1 = (scan.with_data(scan.data.astype(number_type)) for scan in (flair, t1))
    mask = found(flair, t1, model, tmp_path)
    assert np.allclose(mask.affine, flair.affine)
    assert np.array_equal(mask.canonical().data, expected.data)


def turned(degrees):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    matrix[:3, 3] = 31, -17, 8
    return matrix


def sheared(by):
    return np.eye(4) + np.pad([[0, by, 0], [0, 0, by], [0, 0, 0]], (0, 1))


WORLDS = {
    "oblique": turned((12, -8, 5)),
    "double oblique": turned((-25, 20, 30)),
    "rounded directions": sheared(4e-4),
    "sheared": sheared(0.03),
    "oblique and sheared": turned((12, -8, 5)) @ sheared(0.03),
    "far from the origin": turned((0, 0, 0)) + np.pad([[900.0], [-700], [400]], ((0, 1), (3, 0))),
}


@pytest.mark.parametrize("world", WORLDS)
def test_the_mask_is_the_same_wherever_the_scanner_saw_the_head(
    head, model, expected, tmp_path, world
):
    flair, t1 = (Volume(scan.data, WORLDS[world] @ scan.affine) for scan in (head.flair, head.t1))
    mask = found(flair, t1, model, tmp_path)
    assert dice(mask.data, expected.data) >= 0.99


# --- every reader sees the mask where it sees the scan ---


def with_forms(path, scan, *, codes, units="mm", qform=None, endian="<", kind=nib.Nifti1Image):
    header = kind.header_class(endianness=endian)
    header.set_data_dtype(scan.data.dtype)
    per_unit = np.diag([*[{"mm": 1.0, "meter": 1e-3, "micron": 1e3}[units]] * 3, 1.0])
    image = kind(scan.data, None, header)
    image.set_qform(per_unit @ (scan.affine if qform is None else qform), code=codes[1])
    image.set_sform(per_unit @ scan.affine, code=codes[0])
    image.header.set_xyzt_units(units)
    nib.save(image, path)
    return path


def shifted(scan):
    qform = scan.affine.copy()
    qform[:3, 3] += 5, 0, -12
    return qform


def gzipped_twice_over(path, scan):
    """In two members, as parallel compressors write them."""
    plain = with_forms(path.with_suffix(""), scan, codes=(1, 1)).read_bytes()
    half = len(plain) // 2
    path.write_bytes(gzip.compress(plain[:half]) + gzip.compress(plain[half:]))


FILES = {
    "both forms": ("x.nii", lambda p, s: with_forms(p, s, codes=(1, 1))),
    "sform alone": ("x.nii.gz", lambda p, s: with_forms(p, s, codes=(2, 0))),
    "qform alone": ("x.nii.gz", lambda p, s: with_forms(p, s, codes=(0, 1))),
    "codes of an atlas": ("x.nii.gz", lambda p, s: with_forms(p, s, codes=(4, 3))),
    "forms in conflict": ("x.nii", lambda p, s: with_forms(p, s, codes=(1, 1), qform=shifted(s))),
    "metres": ("x.nii", lambda p, s: with_forms(p, s, codes=(1, 1), units="meter")),
    "microns": ("x.nii", lambda p, s: with_forms(p, s, codes=(1, 1), units="micron")),
    "big-endian": ("x.nii", lambda p, s: with_forms(p, s, codes=(1, 1), endian=">")),
    "NIfTI-2": ("x.nii", lambda p, s: with_forms(p, s, codes=(1, 1), kind=nib.Nifti2Image)),
    "a pair": ("x.img", lambda p, s: with_forms(p, s, codes=(1, 1), kind=nib.Nifti1Pair)),
    "two members": ("x.nii.gz", gzipped_twice_over),
}


@pytest.mark.parametrize("orientation", ["as made", "oblique, turned and flipped"])
@pytest.mark.parametrize("case", FILES)
def test_the_mask_lies_where_each_reader_sees_the_scan(
    head, model, expected, tmp_path, case, orientation
):
    flair, t1 = head.flair, head.t1
    if orientation != "as made":
        world = WORLDS["oblique"]
        flair, t1 = (Volume(scan.data, world @ scan.affine) for scan in (flair, t1))
        flair = stored(flair, (1, 0, 2), (-1, 1, 1))
    name, write = FILES[case]
    write(tmp_path / name, flair)
    nifti.write(tmp_path / "T1.nii", t1)
    mask = masked(tmp_path / name, tmp_path / "T1.nii", model, tmp_path)
    assert dice(mask.canonical().data, expected.data) >= 0.99

    scan, written = (nib.load(p) for p in (tmp_path / name, tmp_path / "out" / "wmh.nii.gz"))
    for get in ("get_sform", "get_qform"):
        (form, code), (known, known_code) = (
            getattr(image.header, get)(coded=True) for image in (written, scan)
        )
        assert code == known_code
        assert (form is None) == (known is None)
        assert form is None or np.array_equal(form, known)
    assert np.array_equal(written.header["pixdim"][:4], scan.header["pixdim"][:4])
    assert written.header["xyzt_units"] == scan.header["xyzt_units"]
    assert written.header.get_slope_inter() in ((1, 0), (None, None))
    if case != "NIfTI-2":  # ITK does not read it
        seen, marked = (
            sitk.ReadImage(str(p)) for p in (tmp_path / name, tmp_path / "out" / "wmh.nii.gz")
        )
        assert seen.GetDirection() == marked.GetDirection()
        assert seen.GetOrigin() == marked.GetOrigin()
        assert seen.GetSpacing() == marked.GetSpacing()


def test_the_mask_of_an_image_of_freesurfer_lies_on_it(head, model, expected, tmp_path):
    flair = stored(head.flair, (0, 2, 1), (-1, -1, 1))  # as FreeSurfer conforms: L, I, A
    for name, scan in (("FLAIR", flair), ("T1", head.t1)):
        nib.save(nib.MGHImage(scan.data, scan.affine), tmp_path / f"{name}.mgz")
    mask = masked(tmp_path / "FLAIR.mgz", tmp_path / "T1.mgz", model, tmp_path)
    assert np.array_equal(mask.canonical().data, expected.data)
    header = nib.load(tmp_path / "out" / "wmh.nii.gz").header
    for form in (header.get_sform(), header.get_qform()):
        assert np.allclose(form, nib.load(tmp_path / "FLAIR.mgz").affine, atol=1e-4)
