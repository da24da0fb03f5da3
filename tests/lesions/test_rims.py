"""Normal caps and rims of the ventricles: apart from WMH, counted as WMH, or left out."""

import json
from dataclasses import replace
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import scipy.ndimage

from conftest import segmented
from leuko.cli.text import findings_as_text
from leuko.cohort import derivatives, summary
from leuko.cohort.job import Wanted
from leuko.errors import LeukoError
from leuko.io import nifti
from leuko.io.record import RunRecord
from leuko.io.tissue import CLASSES
from leuko.lesions.delineation import delineate
from leuko.longitudinal.compare import compare
from leuko.model import predict
from leuko.model.calibration import Calibration
from leuko.model.card import ModelCard, load_card
from leuko.model.predict import Prediction
from leuko.model.runtime import Model
from leuko.model.weights import DEFAULT, find
from leuko.preprocessing.slices import Preparation
from leuko.results import Segmentation
from leuko.segment import SegmentSettings, measure, segment
from leuko.training.plan import start
from leuko.training.settings import Settings
from phantoms import AIR, CSF, FAT, GREY, SKULL, WHITE, make_phantom

CONVENTIONS = ("separate", "include", "exclude")
CARD = ModelCard(
    name="seven",
    classes=CLASSES,
    preparation=Preparation(t1_optional=True),
    stages=((4,),),
    side_maps=2,
    training={},
    edges=True,
    smallest_lesion_mm3=0.0,
)


def made_head():
    """A head with bright bands along its ventricles and in its scalp; probabilities of all."""
    head = make_phantom(np.random.default_rng(2), shape=(90, 110, 18), spacing_mm=(1.9, 1.9, 7.0))
    tissue, lesion = head.tissue.data, head.labels.data > 0
    points = np.argwhere(tissue == CSF) - (np.array(tissue.shape) - 1) / 2
    inner = np.zeros(tissue.shape, bool)
    inner[tuple(np.argwhere(tissue == CSF)[(np.abs(points) < (14, 22, 4)).all(axis=1)].T)] = True
    near = scipy.ndimage.binary_dilation(inner, iterations=2)
    scalp = np.zeros(tissue.shape, bool)
    scalp[40:50, 100:] = True
    rims = (near & np.isin(tissue, (WHITE, GREY)) & ~lesion) | (scalp & (tissue == FAT))
    stray = np.zeros(tissue.shape, bool)
    stray[40:50, :12, 9] = True
    lesion |= stray & (tissue == FAT)
    flair = head.flair.data.astype(np.float32)
    white = np.median(flair[tissue == WHITE])
    flair[rims | lesion] = 1.6 * white
    of_class = np.zeros(tissue.shape, int)
    for kind, name in ((CSF, "csf"), (GREY, "grey"), (WHITE, "white")):
        of_class[tissue == kind] = CLASSES.index(name)
    of_class[inner] = CLASSES.index("ventricle")
    of_class[head.labels.data > 0] = CLASSES.index("white")
    p = 0.1 * (np.arange(len(CLASSES))[:, None, None, None] == of_class)
    p = np.where(rims | lesion, p, 10 * p).astype(np.float32)
    p[-2], p[-1] = 0.85 * rims, 0.9 * lesion
    p[-1] += 0.05 * rims
    assert not np.isin(tissue[rims & ~scalp], (AIR, SKULL)).any()
    return head.flair.with_data(flair), p, scalp


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs one scan with a model of seven classes: by convention, its folder and its result."""
    folder = tmp_path_factory.mktemp("rims")
    flair, p, scalp = made_head()
    nifti.write(folder / "FLAIR.nii.gz", flair)
    excluded = np.zeros(flair.data.shape, np.uint8)
    excluded[:45] = 1
    nifti.write(folder / "left.nii.gz", flair.with_data(excluded))

    def run(out, card=CARD, probabilities=p, **options):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(predict, "predict_pair", lambda *_: probabilities)
            model = Model(card, network=None)
            return segmented(folder / "FLAIR.nii.gz", None, folder / out, model=model, **options)

    results = {name: run(name, rims=name) for name in CONVENTIONS}
    excluding = {
        name: run(f"part-{name}", rims=name, exclude=folder / "left.nii.gz") for name in CONVENTIONS
    }
    return SimpleNamespace(
        folder=folder, run=run, p=p, scalp=scalp, results=results, excluding=excluding
    )


def mask_of(result):
    return result.maps.mask.data > 0


def record_of(runs, name):
    return RunRecord.read(runs.folder / name / "run.json")


@pytest.mark.parametrize("part", ["results", "excluding"])
def test_a_mask_with_rims_is_wmh_and_rims_and_without_them_it_is_wmh(runs, part):
    separate, include, exclude = (getattr(runs, part)[name] for name in CONVENTIONS)
    assert separate.maps.rims.data.any()
    assert not (mask_of(separate) & separate.maps.rims.data).any()
    np.testing.assert_array_equal(mask_of(include), mask_of(separate) | separate.maps.rims.data)
    np.testing.assert_array_equal(mask_of(exclude), mask_of(separate))
    np.testing.assert_array_equal(include.maps.rims.data, separate.maps.rims.data)
    assert exclude.maps.rims is None


@pytest.mark.parametrize("part", ["results", "excluding"])
def test_volumes_add_up_by_every_convention(runs, part):
    separate, include, exclude = (getattr(runs, part)[name] for name in CONVENTIONS)
    for result in (separate, include):
        assert result.wmh_ml + result.rims_ml == pytest.approx(result.wmh_and_rims_ml)
        assert result.wmh_ml == pytest.approx(separate.volume_ml)
        assert result.wmh_and_rims_ml == pytest.approx(include.volume_ml)
        assert result.rims_ml == pytest.approx(separate.rims_ml)
    assert exclude.wmh_ml == exclude.volume_ml == separate.volume_ml
    assert (exclude.rims_ml, exclude.wmh_and_rims_ml) == (None, None)


def test_lesions_and_regions_follow_the_mask(runs):
    for result in runs.results.values():
        lesions, regions = result.analysis.lesions, result.analysis.regions
        assert sum(row.volume_ml for row in lesions) == pytest.approx(result.volume_ml)
        parts = regions.periventricular_ml + regions.deep_ml + regions.infratentorial_ml
        assert parts == pytest.approx(result.volume_ml)


def test_the_mask_is_where_the_probability_is_high(runs):
    for result in runs.results.values():
        high = result.maps.probability.data >= CARD.threshold
        assert not (mask_of(result) & ~high).any()
        outside = high & ~mask_of(result)
        assert not (outside & (runs.p[:5].argmax(axis=0) > 0)).any()  # in the scalp alone


def test_rims_outside_the_brain_and_in_an_exclusion_mask_are_left_out(runs):
    flair = nifti.read(runs.folder / "FLAIR.nii.gz")
    assert (delineate(Prediction.of(runs.p, flair, CARD), flair, CARD).rims & runs.scalp).any()
    assert "lesions outside the brain" in runs.results["separate"].checks
    assert runs.results["separate"].outside.lesions > 0
    assert not (runs.results["separate"].maps.rims.data & runs.scalp).any()
    assert not runs.excluding["separate"].maps.rims.data[:45].any()
    taken = {name: runs.excluding[name].excluded.wmh_ml for name in CONVENTIONS}
    assert taken["include"] > taken["separate"] == taken["exclude"]


def test_rims_are_a_file_and_a_class_of_the_tissues_where_they_are_apart(runs):
    rims = nifti.read_labels(runs.folder / "separate" / "wmh_rims.nii.gz", values=(0, 1))
    assert rims.data.dtype == np.uint8
    np.testing.assert_array_equal(rims.data > 0, runs.results["separate"].maps.rims.data)
    for name, result in runs.results.items():
        tissue = nifti.read_labels(runs.folder / name / "tissue.nii.gz", values=range(7)).data
        apart = result.maps.rims.data if name == "separate" else np.zeros(tissue.shape, bool)
        np.testing.assert_array_equal(tissue == CLASSES.index("rim"), apart)
        np.testing.assert_array_equal(tissue == CLASSES.index("wmh"), mask_of(result))
        assert (runs.folder / name / "wmh_rims.nii.gz").exists() == (name == "separate")


def test_the_rims_of_an_older_run_do_not_stay(runs):
    runs.run("again", rims="separate")
    assert (runs.folder / "again" / "wmh_rims.nii.gz").is_file()
    runs.run("again", rims="exclude")
    assert not (runs.folder / "again" / "wmh_rims.nii.gz").exists()


def test_the_record_and_the_row_say_which_convention_the_mask_follows(runs):
    for name, result in runs.results.items():
        record = record_of(runs, name)
        row = summary.row(record)
        assert record.rims == record.settings.rims == row["rims"] == name
        for column in ("wmh_ml", "rims_ml", "wmh_and_rims_ml"):
            value = getattr(result, column)
            kept = getattr(record, column)
            assert kept == (None if value is None else round(value, 4))
            assert np.isnan(row[column]) if value is None else row[column] == kept
        drawn = record.tissue_ml["rim"]
        assert (drawn is None) == (name != "separate")
        known = [ml for ml in record.tissue_ml.values() if ml is not None]
        assert sum(known) == pytest.approx(record.intracranial_ml, abs=0.02)


def test_an_interval_is_of_wmh_alone(runs):
    calibration = Calibration(2.0, 0.1, None, "nothing")
    card = replace(CARD, calibration=calibration)
    told = [runs.run("judged", card, rims=name).judgement for name in CONVENTIONS]
    assert [judgement is None for judgement in told] == [False, True, False]


def fewer(p, *names):
    """Card and probabilities of a model without some classes, which are other tissue to it."""
    kept = [k for k, name in enumerate(CLASSES) if name not in names]
    merged = p[kept].copy()
    gains = 0 if "white" in names else CLASSES.index("white")
    merged[gains] += sum(p[CLASSES.index(name)] for name in names)
    return replace(CARD, classes=tuple(CLASSES[k] for k in kept)), merged


@pytest.mark.parametrize("lacking", [("rim",), CLASSES[1:-1]], ids=["six classes", "two classes"])
def test_a_model_without_rims_has_none_and_cannot_count_them(runs, lacking):
    card, p = fewer(runs.p, *lacking)
    with pytest.raises(LeukoError, match="the model seven has no class rim"):
        runs.run("refused", card, p, rims="include")
    assert not (runs.folder / "refused").exists()
    result = runs.run("unknown", card, p)
    assert mask_of(result).any()
    assert (result.rims, result.wmh_ml, result.rims_ml, result.wmh_and_rims_ml) == (None,) * 4
    record = record_of(runs, "unknown")
    assert record.rims is None
    assert summary.row(record)["rims"] == "n/a"
    assert not (runs.folder / "unknown" / "wmh_rims.nii.gz").exists()
    page = (runs.folder / "unknown" / "report.html").read_text()
    assert "Normal caps and rims of the ventricles are not distinguished from WMH." in page
    assert "#cc79a7" not in page
    assert "caps and rims" not in findings_as_text(result)


def test_the_terminal_tells_both_volumes(runs):
    said = {name: findings_as_text(result) for name, result in runs.results.items()}
    result = runs.results["separate"]
    both = f"{result.rims_ml:.2f} mL of caps and rims, not in the mask"
    assert both in said["separate"]
    assert f"WMH and rims together {result.wmh_and_rims_ml:.2f} mL" in said["separate"]
    assert said["separate"].startswith(f"WMH volume  {result.volume_ml:.2f} mL in ")
    assert said["include"].startswith(f"WMH + rims  {result.wmh_and_rims_ml:.2f} mL in ")
    assert f"{result.wmh_ml:.2f} mL of WMH without them" in said["include"]
    assert "rims" not in said["exclude"]


def test_runs_of_different_conventions_are_warned_of_and_read_rightly(runs):
    folders = [runs.folder / name for name in CONVENTIONS]
    result = compare(folders[0], folders[1], runs.folder / "compared")
    (told,) = [found.text for found in result.findings if "caps and rims" in found.text]
    assert "differ in caps and rims (not in the mask, in the mask)" in told
    both = runs.results["include"].volume_ml
    assert result.changes.followup_ml == pytest.approx(both, rel=0.02)
    record = json.loads((runs.folder / "compared" / "compare.json").read_text())
    assert [run["rims"] for run in record["inputs"].values()] == ["separate", "include"]
    alike = compare(folders[0], folders[2], runs.folder / "alike")
    assert not any("caps and rims" in found.text for found in alike.findings)
    assert alike.changes.change_ml == 0


def test_bids_derivatives_name_the_rims_and_say_the_convention(runs, tmp_path):
    for name, where in (("separate", "not in the mask"), ("include", "in the mask")):
        runs.run(f"native-{name}", rims=name)
        out = tmp_path / name
        out.mkdir()
        derivatives.arrange(
            runs.folder / f"native-{name}", out, "sub-01_space-FLAIR_", ["bids:raw:F"]
        )
        about = json.loads((out / "sub-01_space-FLAIR_label-WMH_mask.json").read_text())
        assert about["CapsAndRims"] == name
        assert about["Description"].endswith(f"ventricles are {where}")
        for end in (".nii.gz", ".json"):
            rims = out / f"sub-01_space-FLAIR_desc-rims_mask{end}"
            assert rims.exists() == (name == "separate")
        (out / "sub-01_space-FLAIR_desc-rims_mask.nii.gz").touch()
        derivatives.drop_older(out, "sub-01_space-FLAIR_", set())
        assert not list(out.iterdir())


def measured(runs, given, **settings):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict, "predict_pair", lambda *_: runs.p)
        return measure(
            given.mask if isinstance(given, Segmentation) else given,
            runs.folder / "FLAIR.nii.gz",
            runs.folder / "T1.nii.gz" if settings else None,
            model=Model(CARD, network=None),
            settings=SegmentSettings(**settings),
        )


def test_a_given_mask_has_the_tissues_and_the_rims_of_the_mask_that_it_is(runs):
    found = runs.results["separate"]
    given = measured(runs, found)
    was, now = found.record(), given.record()
    for name in ("tissue_ml", "rims_ml", "intracranial_ml", "volume_percent_icv", "regions"):
        assert getattr(now, name) == getattr(was, name), name
    np.testing.assert_array_equal(given.maps.tissue.data, found.maps.tissue.data)
    np.testing.assert_array_equal(given.maps.rims.data, found.maps.rims.data)
    assert (now.rims, now.wmh_ml, now.wmh_and_rims_ml) == (None, None, None)
    given.save(runs.folder / "given")
    assert (runs.folder / "given" / "wmh_rims.nii.gz").is_file()
    page = (runs.folder / "given" / "report.html").read_text()
    for text in (page, findings_as_text(given), repr(given)):
        assert "found by the model outside the mask" in text
    row = summary.row(now)
    assert row["rims_ml"] == was.rims_ml
    for column in ("threshold", "lesion_threshold", "smallest_lesion_mm3"):
        assert np.isnan(row[column])
        assert not np.isnan(summary.row(was)[column])


def test_a_corrected_mask_has_rims_of_its_own_in_a_bids_dataset(runs, tmp_path):
    given = measured(runs, runs.results["separate"])
    given.save(tmp_path / "native")
    out = tmp_path / "anat"
    out.mkdir()
    prefix = "sub-01_space-FLAIR_"
    derivatives.arrange(tmp_path / "native", out, prefix, ["bids:raw:F"], is_edited=True)
    rims = nifti.read_map(out / f"{prefix}desc-rimsEdited_mask.nii.gz")
    np.testing.assert_array_equal(rims.data > 0, given.maps.rims.data)
    about = json.loads((out / f"{prefix}desc-rimsEdited_mask.json").read_text())
    assert about["Type"] == "ROI"


def test_a_given_mask_takes_its_voxels_from_the_rims_of_the_model(runs):
    found, both = runs.results["separate"], runs.results["include"]
    half = both.maps.mask.data.copy()
    half[:45] = found.maps.mask.data[:45]
    given = measured(runs, nib.Nifti1Image(half, both.mask.affine))
    expected = found.maps.rims.data & (half == 0)
    assert expected.any()
    np.testing.assert_array_equal(given.maps.rims.data, expected)


def test_the_intracranial_volume_does_not_depend_on_the_given_mask(runs):
    found = runs.results["separate"]
    expected = found.analysis.intracranial_ml
    inside = nifti.read(runs.folder / "FLAIR.nii.gz").data > 20
    for mask in (np.zeros(inside.shape, np.uint8), inside.astype(np.uint8)):
        given = measured(runs, nib.Nifti1Image(mask, found.mask.affine))
        assert given.analysis.intracranial_ml == expected
    assert given.volume_ml > expected


def test_the_same_mask_gives_the_same_filled_t1_by_every_convention_and_command(runs):
    flair, options = nifti.read(runs.folder / "FLAIR.nii.gz"), {"fill": True, "alignment": "never"}
    inverse = flair.with_data(np.where(flair.data > 20, 400 - flair.data, flair.data))
    nifti.write(runs.folder / "T1.nii.gz", inverse)
    found = {}
    for name in CONVENTIONS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(predict, "predict_pair", lambda *_: runs.p)
            settings = SegmentSettings(rims=name, **options)
            scans = (runs.folder / f"{scan}.nii.gz" for scan in ("FLAIR", "T1"))
            found[name] = segment(*scans, model=Model(CARD, network=None), settings=settings)
        again = measured(runs, found[name], **options)
        assert again.extras.filled == found[name].extras.filled is not None
    assert found["separate"].extras.filled == found["exclude"].extras.filled
    assert found["separate"].extras.filled != found["include"].extras.filled


def test_another_convention_is_another_result():
    wanted = [Wanted.of(SegmentSettings(rims=name)) for name in ("separate", "exclude", "separate")]
    assert wanted[0] == wanted[2] != wanted[1]
    assert wanted[0].limits == load_card(find(DEFAULT)).limits()


def test_commands_refuse_rims_that_the_model_does_not_know(leuko, heads, model, tmp_path):
    flair = heads / "head0" / "FLAIR.nii.gz"
    (tmp_path / "pairs.tsv").write_text(f"id\tflair\na\t{flair}\n")
    for command in (("segment", "--flair", flair), ("batch", tmp_path / "pairs.tsv")):
        out = tmp_path / "out"
        code, _, err = leuko(*command, "-o", out, "--model", model, "--rims", "include")
        assert code == 2
        assert "has no class rim; its classes are background, wmh: omit" in err
        assert not out.exists()


@pytest.mark.parametrize(
    "names", [("background", "rim", "white", "wmh"), ("background", "csf", "rim", "wmh")]
)
def test_a_training_with_a_class_rim_that_cannot_be_used_is_refused(tmp_path, names):
    settings = Settings(str(tmp_path), classes=names, label_names=names, init="none")
    with pytest.raises(
        LeukoError, match="expected also white, and rim and wmh as the last two classes"
    ):
        start(tmp_path / "run", settings)
