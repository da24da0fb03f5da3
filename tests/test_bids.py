"""Which images of a BIDS dataset belong together, and which are taken."""

import json

import pytest

from leuko.bids import Image, find_pairs, read_filter, start_dataset
from leuko.errors import LeukoError


@pytest.fixture
def dataset(tmp_path):
    """Makes empty images of the given names, in their places; gives back the dataset."""

    def make(*names):
        for name in names:
            found = Image.of(tmp_path / f"{name}.nii.gz").entities
            folder = tmp_path / "ds" / f"sub-{found['sub']}"
            folder = folder / f"ses-{found['ses']}" if "ses" in found else folder
            (folder / "anat").mkdir(parents=True, exist_ok=True)
            (folder / "anat" / f"{name}.nii.gz").touch()
        return tmp_path / "ds"

    return make


def taken(dataset, **wanted):
    pairs, _ = find_pairs(dataset, **wanted)
    names = [(pair.flair.path, pair.t1 and pair.t1.path) for pair in pairs]
    return [(f.name[:-7], t1 and t1.name[:-7]) for f, t1 in names]


def test_each_visit_and_each_run_is_one_pair(dataset):
    folder = dataset(
        *(
            f"{visit}_{image}"
            for image in ("FLAIR", "T1w")
            for visit in ("sub-01", "sub-02_ses-a", "sub-02_ses-b", "sub-03_run-1", "sub-03_run-2")
        )
    )
    pairs, notes = find_pairs(folder)
    assert [pair.name for pair in pairs] == [
        "sub-01", "sub-02_ses-a", "sub-02_ses-b", "sub-03_run-1", "sub-03_run-2"
    ]  # fmt: skip
    assert all(pair.t1.path.name == pair.flair.path.name.replace("FLAIR", "T1w") for pair in pairs)
    assert notes == []
    assert [str(pair.visit) for pair in pairs[1:3]] == ["sub-02/ses-a", "sub-02/ses-b"]
    assert pairs[3].prefix == "sub-03_run-1_space-FLAIR_"
    assert pairs[1].sources(folder) == (
        "bids:raw:sub-02/ses-a/anat/sub-02_ses-a_FLAIR.nii.gz",
        "bids:raw:sub-02/ses-a/anat/sub-02_ses-a_T1w.nii.gz",
    )


def test_other_images_and_other_folders_are_left_alone(dataset):
    folder = dataset("sub-01_FLAIR", "sub-01_T2w", "sub-01_label-WMH_mask")
    (folder / "derivatives" / "sub-02" / "anat").mkdir(parents=True)
    (folder / "derivatives" / "sub-02" / "anat" / "sub-02_FLAIR.nii.gz").touch()
    (folder / "sub-01" / "anat" / "notes_FLAIR.nii.gz").touch()
    (folder / "sub-01" / "anat" / "sub-01_FLAIR.json").touch()
    assert taken(folder) == [("sub-01_FLAIR", None)]


def test_of_several_flairs_the_plainest_is_taken_and_that_is_said(dataset):
    folder = dataset("sub-01_acq-3d_FLAIR", "sub-01_FLAIR", "sub-01_rec-norm_FLAIR")
    pairs, notes = find_pairs(folder)
    assert taken(folder) == [("sub-01_FLAIR", None)]
    assert len(pairs) == 1
    assert notes == [
        "sub-01: of 3 FLAIR sub-01_FLAIR.nii.gz is taken; --bids-filter-file decides otherwise"
    ]


def test_the_t1_most_like_the_flair_is_taken(dataset):
    folder = dataset(
        "sub-01_space-MNI_desc-brain_FLAIR",
        "sub-01_T1w",
        "sub-01_ce-gad_T1w",
        "sub-01_space-MNI_desc-brain_T1w",
    )
    assert taken(folder) == [
        ("sub-01_space-MNI_desc-brain_FLAIR", "sub-01_space-MNI_desc-brain_T1w")
    ]
    folder = dataset("sub-02_FLAIR", "sub-02_ce-gad_T1w", "sub-02_T1w")
    assert taken(folder, participants=["02"]) == [("sub-02_FLAIR", "sub-02_T1w")]


def test_a_t1_without_run_serves_every_flair(dataset):
    folder = dataset("sub-01_run-1_FLAIR", "sub-01_run-2_FLAIR", "sub-01_T1w")
    assert {t1 for _, t1 in taken(folder)} == {"sub-01_T1w"}
    assert find_pairs(folder)[1] == []


def test_a_choice_among_runs_of_the_t1_is_said(dataset):
    folder = dataset("sub-01_FLAIR", "sub-01_run-1_T1w", "sub-01_run-2_T1w")
    assert taken(folder) == [("sub-01_FLAIR", "sub-01_run-1_T1w")]
    assert find_pairs(folder)[1] == [
        "sub-01: of 2 T1w sub-01_run-1_T1w.nii.gz is taken; --bids-filter-file decides otherwise"
    ]


def test_participants_and_sessions_are_named_with_their_entity_or_without(dataset):
    folder = dataset("sub-01_ses-a_FLAIR", "sub-01_ses-b_FLAIR", "sub-02_ses-a_FLAIR")
    for labels in (["01"], ["sub-01"]):
        assert len(taken(folder, participants=labels)) == 2
    assert taken(folder, sessions=["ses-b"]) == [("sub-01_ses-b_FLAIR", None)]


@pytest.mark.parametrize(
    ("wanted", "left"),
    [
        ({"acquisition": "3d"}, "sub-01_acq-3d_run-01_FLAIR"),
        ({"acq": ["4d", "3d"]}, "sub-01_acq-3d_run-01_FLAIR"),
        ({"acq": "*", "run": 1, "suffix": "FLAIR"}, "sub-01_acq-3d_run-01_FLAIR"),
        ({"acquisition": None}, "sub-01_run-02_FLAIR"),
    ],
)
def test_a_filter_chooses(dataset, tmp_path, wanted, left):
    folder = dataset("sub-01_acq-3d_run-01_FLAIR", "sub-01_run-02_FLAIR", "sub-01_T1w")
    (tmp_path / "filter.json").write_text(json.dumps({"flair": wanted}))
    assert taken(folder, filters=read_filter(tmp_path / "filter.json")) == [(left, "sub-01_T1w")]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"bold": {}}, "filters 'bold'; expected flair or t1w"),
        ({"flair": "3d"}, "filters 'flair'"),
        ({"flair": {"colour": "red"}}, "filters by 'colour'; expected one of subject, session"),
    ],
)
def test_a_filter_that_is_none_is_refused(tmp_path, content, said):
    (tmp_path / "filter.json").write_text(json.dumps(content))
    with pytest.raises(LeukoError) as told:
        read_filter(tmp_path / "filter.json")
    assert said in str(told.value)


def test_what_is_not_there_is_named(dataset, tmp_path):
    with pytest.raises(LeukoError, match="does not exist or is no folder"):
        find_pairs(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LeukoError, match="holds no sub-\\* folder"):
        find_pairs(tmp_path / "empty")
    folder = dataset("sub-01_ses-a_FLAIR", "sub-02_ses-a_T1w")
    with pytest.raises(LeukoError, match="has no participant 03, 04"):
        find_pairs(folder, participants=["01", "03", "04"])
    with pytest.raises(LeukoError, match="has no session b"):
        find_pairs(folder, sessions=["b"])
    with pytest.raises(LeukoError, match="holds no FLAIR such as"):
        find_pairs(folder, participants=["02"])
    with pytest.raises(LeukoError, match="holds no FLAIR that the filter lets pass"):
        find_pairs(folder, filters={"flair": {"acq": "x"}})


def test_an_image_in_the_folder_of_another_visit_is_left_out_and_named(dataset):
    folder = dataset("sub-01_ses-a_FLAIR", "sub-01_ses-b_FLAIR", "sub-02_T1w")
    home = folder / "sub-01" / "ses-a" / "anat"
    for name in ("sub-01_FLAIR", "sub-02_ses-a_FLAIR", "sub-01_ses-b_acq-2_FLAIR", "acq-3d_FLAIR"):
        (home / f"{name}.nii.gz").touch()
    pairs, notes = find_pairs(folder)
    assert [pair.name for pair in pairs] == ["sub-01_ses-a", "sub-01_ses-b"]
    assert len([note for note in notes if "its name is of another subject or session" in note]) == 4
    assert "without a FLAIR: sub-02" in notes


def test_labels_may_have_a_plus(dataset):
    assert taken(dataset("sub-01+a_FLAIR", "sub-01+a_T1w")) == [("sub-01+a_FLAIR", "sub-01+a_T1w")]


def test_the_dataset_of_another_program_is_left_alone(dataset, tmp_path):
    folder = dataset("sub-01_FLAIR")
    (folder / "dataset_description.json").write_text('{"Name": "raw", "BIDSVersion": "1.8.0"}')
    with pytest.raises(LeukoError, match="is a dataset of its own"):
        start_dataset(folder, folder)
    start_dataset(tmp_path / "out", folder)
    before = (tmp_path / "out" / "dataset_description.json").stat()
    start_dataset(tmp_path / "out", folder)
    assert (tmp_path / "out" / "dataset_description.json").stat() == before
