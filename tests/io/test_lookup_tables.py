"""Lookup tables: each viewer reads the numbers, names and colours of the labels."""

import re
import shlex
from itertools import pairwise

import numpy as np
import pytest

from leuko.cohort import derivatives
from leuko.io import lookup_tables, nifti
from leuko.io.lookup_tables import Label, coloured
from leuko.io.tissue import CLASSES, labels_of
from leuko.lesions.location import REGION_LABELS
from leuko.report.single import KINDS

LABELS = [Label(1, "caps and rims", "#cc79a7"), Label(5, "WMH", "#e69f00")]
LABEL_IMAGES = "tissue", "wmh_regions", "wmh_lesions"


@pytest.fixture
def folder(tmp_path):
    lookup_tables.write(tmp_path, "some", LABELS)
    return tmp_path


def lines(path):
    return [line for line in path.read_text().splitlines() if not line.startswith("#")]


def test_fsleyes_reads_numbers_colours_from_0_to_1_and_names_with_spaces(folder):
    path = folder / "some.lut"
    table = np.genfromtxt(path, usecols=(0, 1, 2, 3))
    np.testing.assert_allclose(table[:, 0], [1, 5])
    np.testing.assert_allclose(table[:, 1:] * 255, [label.rgb for label in LABELS], atol=0.01)
    assert [line.split(None, 4)[4] for line in lines(path)] == ["caps and rims", "WMH"]
    assert path.read_text().startswith("#")  # FSLeyes skips the first line when it guesses the type


def test_fsleyes_gets_no_table_that_it_cannot_read(tmp_path):
    lookup_tables.write(tmp_path, "one", LABELS[:1])
    assert {path.name for path in tmp_path.iterdir()} == {
        "one.ctbl", "one_freesurfer.txt", "one_itksnap.txt"
    }  # fmt: skip


@pytest.mark.parametrize(("name", "opaque"), [("some_freesurfer.txt", 0), ("some.ctbl", 255)])
def test_freesurfer_and_slicer_read_six_columns(folder, name, opaque):
    rows = [line.split() for line in lines(folder / name)]
    assert [row[:2] for row in rows] == [["0", "background"], ["1", "caps_and_rims"], ["5", "WMH"]]
    assert [tuple(map(int, row[2:])) for row in rows[1:]] == [
        (*label.rgb, opaque) for label in LABELS
    ]


def test_itk_snap_reads_quoted_names_and_a_clear_label(folder):
    rows = [shlex.split(line) for line in lines(folder / "some_itksnap.txt")]
    assert rows[0] == ["0", "0", "0", "0", "0", "0", "0", "Clear Label"]
    assert [(int(row[0]), tuple(map(int, row[1:4])), row[7]) for row in rows[1:]] == [
        (label.number, label.rgb, label.name) for label in LABELS
    ]


def test_neighbouring_lesions_have_different_colours():
    labels = coloured((number, f"lesion {number}") for number in range(1, 30))
    assert len(labels) == 29
    assert all(a.colour != b.colour for a, b in pairwise(labels))


def test_every_class_and_region_has_a_colour_of_its_own():
    for labels in (labels_of(CLASSES), REGION_LABELS):
        assert all(re.fullmatch("#[0-9a-f]{6}", label.colour) for label in labels)
        assert len({label.colour for label in labels}) == len(labels)


def test_a_region_has_the_colour_that_the_report_gives_it():
    assert {n: (kind.name, kind.colour) for n, kind in KINDS.items()} == {
        label.number: (label.name, label.colour) for label in REGION_LABELS
    }


def test_a_bids_dataset_has_one_table_for_each_label_image_of_all_subjects(tmp_path):
    atlas = coloured([(5, "left block"), (300, "right block")])
    derivatives.write_lookup_tables(tmp_path, CLASSES, atlas)
    images = [
        name.removesuffix(".nii.gz")
        for name in derivatives.NAMES.values()
        if name.endswith("_dseg.nii.gz")
    ]
    assert len(images) == 4
    for image in images:
        for ending in (".lut", "_freesurfer.txt", "_itksnap.txt", ".ctbl"):
            assert (tmp_path / "lookup_tables" / f"{image}{ending}").is_file()
    rows = [row.split() for row in lines(tmp_path / "lookup_tables" / "seg-WMHlesions_dseg.ctbl")]
    subject = coloured((number, f"lesion {number}") for number in range(1, 30))
    assert [tuple(map(int, row[2:5])) for row in rows[1:30]] == [label.rgb for label in subject]


def test_each_label_image_of_a_result_has_tables_that_name_its_labels(
    leuko, heads, model, tmp_path
):
    head, out = heads / "head0", tmp_path / "out"
    scans = "--flair", head / "FLAIR.nii.gz", "--t1", head / "T1.nii.gz"
    for _ in range(2):  # the second run replaces the folder of the first
        assert leuko("segment", *scans, "--model", model, "-o", out)[0] == 0
    for image in LABEL_IMAGES:
        if (out / f"{image}.nii.gz").is_file():
            held = set(np.unique(nifti.read(out / f"{image}.nii.gz").data)) - {0}
            for ending in ("_freesurfer.txt", "_itksnap.txt", ".ctbl"):
                rows = lines(out / "lookup_tables" / f"{image}{ending}")
                assert held <= {int(row.split()[0]) for row in rows}
    assert (out / "lookup_tables" / "wmh_lesions.lut").is_file()
