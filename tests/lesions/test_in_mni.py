"""Images in MNI152 space: volumes known by hand, the template's grid and name, the residual."""

import json

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from leuko.cohort import derivatives
from leuko.errors import LeukoError
from leuko.io import nifti
from leuko.io.outputs import MNI_FLAIR_FILE, MNI_MASK_FILE, MNI_PROBABILITY_FILE, RECORD_FILE
from leuko.io.tissue import Tissue
from leuko.lesions import mni
from leuko.lesions.delineation import Delineation
from leuko.lesions.extras import Extras, images_in_mni, placed
from leuko.segment import SegmentSettings, segment
from leuko.volume import Volume, world
from phantoms import SMALL_MODEL
from reports import a_head, a_record

STRETCH = np.array([0.92, 1.05, 0.97])
# Boxes in MNI152 space: corner and edges in mm.
BOXES = (((-40, -20, 20), (14, 20, 12)), ((20, 10, 22), (10, 12, 16)))


@pytest.fixture(scope="module")
def head():
    """The template as a scan with another position and scale, and a mask of the two boxes."""
    template = mni.read("tissue")
    to_scan = np.eye(4)
    to_scan[:3, :3] = Rotation.from_euler("xyz", (8, -5, 10), degrees=True).as_matrix() * STRETCH
    to_scan[:3, 3] = 12, -25, 18
    tissue = Volume(template.data, to_scan @ template.affine, name="head")
    points = world(template, np.argwhere(np.ones(template.data.shape, bool)))
    mask = np.zeros(len(points), bool)
    for corner, edges in BOXES:
        mask |= ((points >= corner) & (points < np.add(corner, edges))).all(axis=1)
    return tissue, mask.reshape(template.data.shape)


@pytest.fixture(scope="module")
def images(head):
    tissue, mask = head
    template = placed(tissue, mni.Place.of(tissue))
    probability = np.where(mask, np.float32(0.75), np.float32(0.1))
    drawn = Delineation(probability, mask, mask, None, tissue, None)
    flair = tissue.with_data(100 * tissue.data.astype(np.int16))
    return Extras(None, template, images_in_mni(flair, drawn, template.place))


def test_volumes_in_mni_space_are_those_of_the_boxes(images):
    mask = images.in_mni[MNI_MASK_FILE]
    points = world(mask, np.argwhere(mask.data))
    for corner, edges in BOXES:
        low, high = np.subtract(corner, 4), np.add(corner, edges) + 4
        near = ((points > low) & (points < high)).all(axis=1)
        assert near.sum() / 1000 == pytest.approx(np.prod(edges) / 1000, rel=0.02)


def test_images_are_on_the_grid_of_the_template_and_say_so(images, tmp_path):
    images.write(tmp_path, None, lambda finding: pytest.fail(finding.text))
    for name in (MNI_MASK_FILE, MNI_PROBABILITY_FILE, MNI_FLAIR_FILE):
        image = nib.load(tmp_path / name)
        assert image.shape == (197, 233, 189)
        np.testing.assert_array_equal(image.affine[:3, 3], (-98, -134, -72))
        assert (image.header["sform_code"], image.header["qform_code"]) == (4, 4)
    mask, probability, flair = (
        np.asarray(nib.load(tmp_path / name).dataobj)
        for name in (MNI_MASK_FILE, MNI_PROBABILITY_FILE, MNI_FLAIR_FILE)
    )
    assert (mask.dtype, flair.dtype) == (np.uint8, np.int16)
    assert probability[mask > 0].mean() > 0.6
    template = mni.read("tissue")
    inside = template.data == Tissue.WHITE
    assert np.median(flair[::2, ::2, ::2][inside]) == 100 * Tissue.WHITE


def test_the_template_is_symmetric_as_its_name_says():
    pytest.importorskip("nilearn")
    from leuko.synthesis import mni152

    t1, _ = mni152.load()
    assert t1.data.shape == mni.SHAPE
    np.testing.assert_array_equal(t1.data, t1.data[::-1])
    np.testing.assert_array_equal(t1.affine[:3, 3], mni.ORIGIN_MM)


def test_the_residual_grows_as_a_brain_fits_less(head, images):
    tissue, _ = head
    exact = images.template.residual
    assert exact.brain_mm < 1
    assert exact.ventricles_mm < 1
    shifted = images.template.place.to_mni.copy()
    shifted[0, 3] += 8
    off = mni.Residual.of(tissue, mni.Place(shifted))
    assert off.brain_mm > exact.brain_mm + 2
    assert off.ventricles_mm > exact.ventricles_mm + 2


def test_a_brain_without_a_place_is_refused(head):
    with pytest.raises(LeukoError, match="could not be registered to MNI152 space"):
        placed(head[0], None)


def test_in_bids_they_are_named_after_the_template(images, tmp_path):
    native, out = tmp_path / "native", tmp_path / "anat"
    native.mkdir()
    out.mkdir()
    images.write(native, None, lambda finding: pytest.fail(finding.text))
    flair, mask = a_head()
    a_record(flair, mask, **images.as_record()).write(native / RECORD_FILE)
    sources = ["bids:raw:sub-01/anat/sub-01_FLAIR.nii.gz"]
    derivatives.arrange(native, out, "sub-01_space-FLAIR_", sources)
    assert {path.name for path in out.glob("*MNI*")} == {
        f"sub-01_space-MNI152NLin2009aSym_{name}{end}"
        for name in ("label-WMH_mask", "label-WMH_probseg", "FLAIR")
        for end in (".nii.gz", ".json")
    }
    about = json.loads((out / "sub-01_space-MNI152NLin2009aSym_label-WMH_mask.json").read_text())
    assert about["Type"] == "Lesion"
    assert "affine" in about["Description"]


def test_segmenting_writes_them_or_says_why_not(heads, tmp_path):
    scans = heads / "head0" / "FLAIR.nii.gz", heads / "head0" / "T1.nii.gz"
    settings = SegmentSettings(model=str(SMALL_MODEL), save_mni=True)
    found = segment(*scans, settings=settings)
    found.save(tmp_path / "out")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["settings"]["save_mni"] is True
    told = [finding["code"] for finding in record["findings"] if finding["code"] == "template"]
    assert ("template" in record) != bool(told)
    assert (tmp_path / "out" / MNI_MASK_FILE).is_file() == ("template" in record)
    if "template" in record:
        mask = nifti.read_mask(tmp_path / "out" / MNI_MASK_FILE)
        growth = np.linalg.det(np.array(record["template"]["to_mni"]))
        assert mask.ml(mask.data) == pytest.approx(record["volume_ml"] * growth, rel=0.02)
