"""Two masks, two folders, and the table that comes of them."""

import json
import math

import numpy as np
import pytest

from leuko.errors import LeukoError
from leuko.evaluation.evaluate import (
    COLUMNS,
    evaluate,
    evaluate_folders,
    from_json,
    json_ready,
    match_folders,
    mean_with_interval,
    summarise,
    write_table,
)
from leuko.io import nifti
from leuko.volume import Volume

AFFINE = np.diag([1.0, 1.0, 4.0, 1.0])


def mask(*voxels, dtype=np.uint8, value=1):
    data = np.zeros((8, 8, 4), dtype=dtype)
    for voxel in voxels:
        data[voxel] = value
    return Volume(data, AFFINE)


HALF = mask((2, 2, 1), (2, 3, 1))
WHOLE = mask((2, 2, 1), (2, 3, 1), (2, 4, 1), (2, 5, 1))


def save(path, volume):
    path.parent.mkdir(parents=True, exist_ok=True)
    nifti.write(path, volume)
    return path


def test_a_pair_of_files_is_measured(tmp_path):
    row = evaluate(save(tmp_path / "r.nii.gz", WHOLE), save(tmp_path / "p.nii.gz", HALF))
    assert tuple(row) == COLUMNS
    assert row["dsc"] == pytest.approx(2 * 2 / 6)
    assert row["avd_percent"] == pytest.approx(50)
    assert row["log_avd"] == pytest.approx(math.log(2))
    assert (row["lesion_recall"], row["lesion_f1"]) == (1, 1)
    assert row["reference_ml"] == pytest.approx(4 * 4 / 1000)
    assert row["prediction_lesions"] == 1


def test_storage_order_does_not_matter(tmp_path):
    turned = WHOLE.data.transpose(2, 0, 1)[::-1]
    affine = np.zeros((4, 4))
    affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3] = -4, 1, 1, 1
    affine[2, 3] = 4 * 3
    other = save(tmp_path / "t.nii.gz", Volume(turned, affine))
    assert evaluate(save(tmp_path / "r.nii.gz", WHOLE), other)["dsc"] == 1


def test_masks_on_different_grids_are_an_error(tmp_path):
    moved = AFFINE.copy()
    moved[0, 3] = 1
    other = save(tmp_path / "p.nii.gz", Volume(HALF.data, moved))
    with pytest.raises(LeukoError, match=r"r.nii.gz \(8x8x4, .* are not on the same voxel grid"):
        evaluate(save(tmp_path / "r.nii.gz", WHOLE), other)


def test_a_probability_map_is_no_reference(tmp_path):
    probability = save(tmp_path / "prob.nii.gz", mask((1, 1, 1), dtype=np.float32, value=0.3))
    with pytest.raises(LeukoError, match=r"label values 0.3; expected only 0, 1, 2"):
        evaluate(probability, save(tmp_path / "p.nii.gz", HALF))


@pytest.mark.parametrize(
    ("reference", "prediction"),
    [
        ("{}/wmh.nii.gz", "{}/wmh.nii.gz"),
        ("{}/lesions.nii.gz", "{}/result.nii.gz"),
        ("{}.nii.gz", "{}.nii"),
        ("Utrecht/{}/wmh.nii.gz", "Utrecht/{}/result.nii.gz"),
    ],
)
def test_folders_are_matched_by_subject(tmp_path, reference, prediction):
    for name, found in (("anna", HALF), ("bert", WHOLE)):
        save(tmp_path / "r" / reference.format(name), WHOLE)
        save(tmp_path / "p" / prediction.format(name), found)
        save(tmp_path / "p" / prediction.format(name).replace(name, f"{name}/wmh_prob"), HALF)
    rows = evaluate_folders(tmp_path / "r", tmp_path / "p")
    assert [name.split("/")[-1] for name in rows] == ["anna", "bert"]
    assert [row["dsc"] for row in rows.values()] == pytest.approx([2 / 3, 1])


def test_a_subject_without_partner_is_named(tmp_path, caplog):
    for name in ("anna", "bert"):
        save(tmp_path / "r" / name / "wmh.nii.gz", WHOLE)
    save(tmp_path / "p" / "anna" / "wmh.nii.gz", HALF)
    save(tmp_path / "p" / "carl" / "wmh.nii.gz", HALF)
    assert list(evaluate_folders(tmp_path / "r", tmp_path / "p")) == ["anna"]
    assert "p has no mask of 1 subject: bert" in caplog.text
    assert "r has no mask of 1 subject: carl" in caplog.text


def test_every_subject_without_prediction_is_named(tmp_path, caplog):
    names = [f"s{k}" for k in range(12)]
    for name in names:
        save(tmp_path / "r" / name / "wmh.nii.gz", WHOLE)
    save(tmp_path / "p" / "s3" / "wmh.nii.gz", HALF)
    matched, lacking = match_folders(tmp_path / "r", tmp_path / "p")
    assert sorted([*matched, *lacking]) == sorted(names)
    for name in lacking:
        assert f" {name}" in caplog.text


def test_folders_whose_masks_have_another_name_are_named(tmp_path, caplog):
    for home in ("r", "p"):
        save(tmp_path / home / "anna" / "wmh.nii.gz", WHOLE)
        save(tmp_path / home / "anna" / "pre" / "FLAIR.nii.gz", WHOLE)
        save(tmp_path / home / "bert" / "mask.nii.gz", WHOLE)
    assert list(evaluate_folders(tmp_path / "r", tmp_path / "p")) == ["anna"]
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        f"{tmp_path}/r/bert holds no mask named wmh or lesions; it is skipped",
        f"{tmp_path}/p/bert holds no mask named wmh or result; it is skipped",
    ]


def test_folders_without_shared_subject_are_an_error(tmp_path):
    save(tmp_path / "r" / "anna" / "wmh.nii.gz", WHOLE)
    save(tmp_path / "p" / "bert" / "wmh.nii.gz", WHOLE)
    with pytest.raises(LeukoError, match=r"r \(anna\) and .*p \(bert\) share no subject"):
        evaluate_folders(tmp_path / "r", tmp_path / "p")


def test_two_masks_of_one_subject_are_an_error(tmp_path):
    save(tmp_path / "r" / "anna" / "wmh.nii.gz", WHOLE)
    save(tmp_path / "r" / "anna" / "lesions.nii.gz", WHOLE)
    with pytest.raises(LeukoError, match="are both masks of anna"):
        evaluate_folders(tmp_path / "r", tmp_path / "r")


def test_the_table_has_a_row_a_subject_and_the_interval(tmp_path):
    empty = mask()
    names = {"anna": HALF, "bert": WHOLE, "carl": empty}
    for name, found in names.items():
        save(tmp_path / "r" / f"{name}.nii.gz", empty if name == "carl" else WHOLE)
        save(tmp_path / "p" / f"{name}.nii.gz", found)
    rows = evaluate_folders(tmp_path / "r", tmp_path / "p")
    write_table(tmp_path / "new" / "table.tsv", rows)
    lines = (tmp_path / "new" / "table.tsv").read_text().splitlines()
    assert lines[0].split("\t") == ["subject", *COLUMNS]
    assert [line.split("\t")[0] for line in lines[1:]] == [*names, "mean", "ci95_low", "ci95_high"]
    assert lines[3].split("\t")[1:4] == ["n/a", "n/a", "n/a"]  # nothing to find, nothing found
    mean = float(lines[4].split("\t")[1])
    assert mean == pytest.approx((2 / 3 + 1) / 2, abs=1e-5)
    assert summarise(rows)["mean"]["dsc"] == pytest.approx(mean, abs=1e-5)


def test_the_interval_holds_the_mean_and_narrows_with_the_number():
    rng = np.random.default_rng(0)
    widths = []
    for count in (10, 1000):
        values = rng.normal(0.7, 0.1, size=count)
        mean, low, high = mean_with_interval(values)
        assert low < mean < high
        assert mean_with_interval(values) == (mean, low, high)
        widths.append(high - low)
    assert widths[1] == pytest.approx(2 * 1.96 * 0.1 / math.sqrt(1000), rel=0.1)
    assert widths[1] < widths[0] / 5


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    intervals = [mean_with_interval(rng.normal(size=40))[1:] for _ in range(200)]
    assert 0.89 <= np.mean([low <= 0 <= high for low, high in intervals]) <= 0.99


def test_undefined_values_have_no_part_in_the_mean():
    assert mean_with_interval([0.5, math.nan])[0] == 0.5
    assert all(math.isnan(v) for v in mean_with_interval([0.5])[1:])
    assert all(math.isnan(v) for v in mean_with_interval([math.nan]))


def test_a_row_is_the_same_after_json():
    row = {"dsc": 0.5, "h95_mm": math.nan}
    written = json.dumps(json_ready(row), allow_nan=False)
    assert from_json(json.loads(written)) == pytest.approx(row, nan_ok=True)
