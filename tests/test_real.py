"""The main job on real scans, briefly. Skipped, loudly, where the scans are absent."""

import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

import leuko
from conftest import segmented, small_settings
from leuko.evaluation.evaluate import evaluate
from leuko.io import nifti
from leuko.preprocessing.slices import Preparation, prepare, tissue_level
from leuko.training import loop, plan

pytestmark = pytest.mark.real

# Brain-extracted at 1 mm, whole heads with very thick slices, whole heads as scanners write them.
PAIRS = (
    "real/ljubljana_26",
    *(f"real/mslesseg_P14_{time}" for time in (1, 2, 3)),
    *(f"real/tabriz_{patient}" for patient in (104252, 105465)),
    *(f"raw_clinical/patient{study}" for study in ("01_study1", "01_study2", "04_study1")),
    *(f"raw_clinical/patient12_study{study}" for study in (1, 2)),
)


@pytest.fixture(scope="module")
def run(real, tmp_path_factory):
    """A small network that has seen two patients for a moment."""
    folder = tmp_path_factory.mktemp("real")
    for name in ("tabriz_104252", "tabriz_105465"):
        (folder / "data" / name).parent.mkdir(exist_ok=True)
        (folder / "data" / name).symlink_to(real / "real" / name)
    settings = small_settings(
        folder / "data", steps=150, preparation=Preparation(pixel_mm=1.5), held_out=0.0
    )
    plan.start(folder / "run", settings)
    loop.fit(folder / "run")
    return folder / "run"


def test_a_seen_patient_is_segmented_and_measured(real, run, tmp_path):
    patient = real / "real" / "tabriz_104252"
    segmented(patient / "FLAIR.nii.gz", patient / "T1.nii.gz", tmp_path, model=run)
    command = [sys.executable, "-m", "leuko.cli", "evaluate", "--json"]
    printed = subprocess.run(
        [*command, str(patient / "lesions.nii.gz"), str(tmp_path / "wmh.nii.gz")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    measures = json.loads(printed)
    assert measures["dsc"] > 0.3
    voxels = nifti.read_labels(patient / "lesions.nii.gz", values={0, 1}).data.sum()
    assert measures["reference_ml"] == pytest.approx(voxels * 0.898**2 * 6.5 / 1000, rel=0.01)


def test_a_raw_clinical_pair_is_segmented_on_its_own_grid(real, run, tmp_path):
    patient = real / "raw_clinical" / "patient04_study1"
    result = segmented(patient / "FLAIR.nii.gz", patient / "T1.nii.gz", tmp_path, model=run)
    flair, mask = (nib.load(p) for p in (patient / "FLAIR.nii.gz", tmp_path / "wmh.nii.gz"))
    assert mask.shape == flair.shape
    np.testing.assert_array_equal(mask.affine, flair.affine)
    for field in ("qform_code", "sform_code", "srow_x", "quatern_b", "xyzt_units"):
        np.testing.assert_array_equal(mask.header[field], flair.header[field])
    np.testing.assert_array_equal(mask.header["pixdim"][:4], flair.header["pixdim"][:4])
    assert 0 < result.volume_ml < 200


def test_a_real_scan_has_the_same_mask_in_any_storage_order(real):
    flair = nib.load(real / "real" / "tabriz_104899" / "FLAIR.nii.gz")
    turned = flair.as_reoriented([[1, -1], [2, 1], [0, -1]])
    model = leuko.load_model()
    one, other = (leuko.segment(image, model=model).mask for image in (flair, turned))
    np.testing.assert_array_equal(
        *(np.asarray(nib.as_closest_canonical(mask).dataobj) for mask in (one, other))
    )
    assert np.asarray(one.dataobj).any()


@pytest.mark.parametrize("pair", PAIRS)
def test_brain_tissue_lands_near_grey_level_100(real, pair):
    flair, t1 = (nifti.read(real / pair / f"{name}.nii.gz") for name in ("FLAIR", "T1"))
    slices, _ = prepare(flair, t1, Preparation())
    middle = slices[len(slices) // 2]
    rows, columns = (slice(n // 4, 3 * n // 4) for n in middle.shape[:2])
    for colour in (1, 2):
        assert 70 < np.median(middle[rows, columns, colour]) < 130


def test_the_tissue_level_ignores_scalp_and_skull(real):
    patient = real / "real" / "tabriz_104252"
    brain = nifti.read_labels(patient / "brainmask.nii.gz", values={0, 1})
    flair = nifti.read(patient / "FLAIR.nii.gz")
    extracted = flair.with_data(np.where(brain.data, flair.data, 0))
    assert tissue_level(flair) == pytest.approx(tissue_level(extracted), rel=0.05)


@pytest.mark.parametrize("patient", ["ljubljana_26", "tabriz_105465"])
@pytest.mark.parametrize("with_t1", [True, False])
def test_the_bundled_model_finds_real_lesions(real, tmp_path, patient, with_t1):
    folder = real / "real" / patient
    t1 = folder / "T1.nii.gz" if with_t1 else None
    segmented(folder / "FLAIR.nii.gz", t1, tmp_path)
    row = evaluate(folder / "lesions.nii.gz", tmp_path / "wmh.nii.gz")
    assert row["dsc"] > 0.55
    assert row["lesion_recall"] > 0.3


def test_the_bundled_model_knows_a_brain_from_a_head(real, tmp_path):
    """A raw scan: about as much brain as people have, and no scalp taken for lesion."""
    folder = real / "raw_clinical" / "patient04_study1"
    segmented(folder / "FLAIR.nii.gz", folder / "T1.nii.gz", tmp_path)
    volumes = json.loads((tmp_path / "run.json").read_text())["tissue_ml"]
    assert 900 < volumes["grey"] + volumes["white"] + volumes["wmh"] < 1600
    assert 5 < volumes["ventricle"] < 100
    assert volumes["wmh"] < 40
