"""Which images of a BIDS dataset belong together, and which are taken."""

import json
import os
from pathlib import Path

import pytest

from leuko.cohort.bids import find_pairs
from leuko.cohort.bids_names import Image, read_filter
from leuko.cohort.derivative_dataset import start_dataset
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
    pairs = find_pairs(dataset, **wanted).pairs
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
    found = find_pairs(folder)
    pairs = found.pairs
    assert [pair.name for pair in pairs] == [
        "sub-01", "sub-02_ses-a", "sub-02_ses-b", "sub-03_run-1", "sub-03_run-2"
    ]  # fmt: skip
    assert all(pair.t1.path.name == pair.flair.path.name.replace("FLAIR", "T1w") for pair in pairs)
    assert (found.notes, found.left_out) == ([], [])
    assert [str(pair.visit) for pair in pairs[1:3]] == ["sub-02/ses-a", "sub-02/ses-b"]
    assert pairs[3].prefix == "sub-03_run-1_space-FLAIR_"
    assert pairs[1].sources(folder) == (
        "bids:raw:sub-02/ses-a/anat/sub-02_ses-a_FLAIR.nii.gz",
        "bids:raw:sub-02/ses-a/anat/sub-02_ses-a_T1w.nii.gz",
    )


def touch(dataset, *places):
    """Makes empty files at these places of a dataset."""
    for place in places:
        (dataset / place).parent.mkdir(parents=True, exist_ok=True)
        (dataset / place).touch()
    return dataset


def test_other_images_are_left_alone(dataset):
    folder = dataset(
        "sub-01_FLAIR", "sub-01_T2w", "sub-01_space-FLAIR_label-WMH_mask", "sub-01_acq-fl_T2w"
    )
    touch(
        folder,
        "sub-01/anat/sub-01_FLAIR.json",
        "sub-01/anat/sub-01_mod-FLAIR_defacemask.nii.gz",
        "sub-01/sub-01_FLAIR.json",
        ".git/annex/sub-01_FLAIR.nii.gz",
        "participants.tsv",
    )
    found = find_pairs(folder)
    assert taken(folder) == [("sub-01_FLAIR", None)]
    assert (found.notes, found.left_out) == ([], [])


def test_a_visit_beside_sessions_is_a_pair_of_its_own(dataset):
    folder = dataset("sub-01_FLAIR", "sub-01_T1w", "sub-01_ses-2_FLAIR")
    assert taken(folder) == [("sub-01_FLAIR", "sub-01_T1w"), ("sub-01_ses-2_FLAIR", None)]
    assert find_pairs(folder).left_out == []


def test_every_acquisition_reconstruction_run_and_echo_is_a_pair_with_a_name_of_its_own(dataset):
    names = [
        "sub-01_FLAIR", "sub-01_acq-2d_FLAIR", "sub-01_acq-2d_rec-norm_run-2_FLAIR",
        "sub-01_echo-1_FLAIR", "sub-01_echo-2_part-mag_FLAIR",
    ]  # fmt: skip
    found = find_pairs(dataset(*names))
    assert [pair.flair.path.name[:-7] for pair in found.pairs] == names
    assert [f"{pair.name}_FLAIR" for pair in found.pairs] == names
    assert found.left_out == []


LEFT_OUT = {
    "sub-01/sub-01_acq-a_FLAIR.nii.gz": "its name requires the folder sub-01/anat",
    "sub-01/Anat/sub-01_acq-a_FLAIR.nii.gz": "its name requires the folder sub-01/anat",
    "sub-01/ses-1/sub-01_ses-1_FLAIR.nii.gz": "its name requires the folder sub-01/ses-1/anat",
    "sub-01/perf/sub-01_acq-a_FLAIR.nii": "its name requires the folder sub-01/anat",
    "sub-01/anat/sub-02_FLAIR.nii.gz": "its name requires the folder sub-02/anat",
    "sub-01/anat/sub-01_ses-2_FLAIR.nii.gz": "its name requires the folder sub-01/ses-2/anat",
    "sub-01/anat/derivatives/sub-01_acq-a_FLAIR.nii.gz": "its name requires the folder sub-01/anat",
    "sub-07_FLAIR.nii.gz": "its name requires the folder sub-07/anat",
    "rawdata/sub-01/anat/sub-01_FLAIR.nii.gz": "its name requires the folder sub-01/anat",
    "sub-01/anat/sub-01_flair.nii.gz": "its suffix is flair; expected FLAIR",
    "sub-01/anat/sub-01_T2FLAIR.nii.gz": "its suffix is T2FLAIR; expected FLAIR",
    "sub-01/anat/sub-01_acq-FLAIR_T2w.nii.gz": "its suffix is T2w; expected FLAIR",
    "sub-01/anat/sub-01_FLAIR.mgz": "it ends with .mgz; expected .nii.gz or .nii",
    "sub-01/anat/sub-01_FLAIR.NII.GZ": "it ends with .NII.GZ; expected .nii.gz or .nii",
    "sub-01/anat/sub-01_FLAIR.v2.nii.gz": "it ends with .v2.nii.gz; expected .nii.gz or .nii",
    "sub-01/anat/sub-01_FLAIR.img": "it ends with .img; expected .nii.gz or .nii",
    "sub-01/anat/sub-01_FLAIR_corrected.nii.gz": "its name is not a BIDS name",
    "sub-01/anat/sub01_FLAIR.nii.gz": "its name is not a BIDS name",
    "sub-01/anat/FLAIR.NII.GZ": "its name is not a BIDS name",
    "sub-01/anat/sub-01_acq-3_d_FLAIR.nii.gz": "its name is not a BIDS name",
    "sub-01/FLAIR/scan.nii.gz": "its name is not a BIDS name",
    "sub-0_3/anat/sub-0_3_FLAIR.nii.gz": "its name is not a BIDS name",
    "subject4/anat/FLAIR.nii.gz": "its name is not a BIDS name",
    "sub-01/anat/sub-01_run-1_acq-a_FLAIR.nii.gz": "as in sub-01_acq-a_run-1_FLAIR.nii.gz",
    "sub-01/anat/sub-01_colour-red_FLAIR.nii.gz": "entities as in sub-01_FLAIR.nii.gz",
    "sub-01/anat/acq-a_FLAIR.nii.gz": "its name is not a BIDS name",
    "sub-01/anat/sub-01_acq-c_part-phase_FLAIR.nii.gz": "part-phase is not a magnitude image",
    "sub-01/anat/sub-01_acq-b_FLAIR.json": "this sidecar has no image",
}
NOTED = {
    "sub-01_part-phase_FLAIR": "part-phase is not a magnitude image",
    "sub-01_part-real_FLAIR": "part-real is not a magnitude image",
    "sub-01_part-imag_space-MNI_FLAIR": "part-imag is not a magnitude image",
    "sub-01_space-MNI_FLAIR": "sub-01_FLAIR.nii.gz is used for this scan",
    "sub-01_desc-brain_FLAIR": "sub-01_FLAIR.nii.gz is used for this scan",
}


@pytest.mark.parametrize("place", LEFT_OUT)
def test_a_flair_that_is_in_no_pair_is_named_once_with_the_reason(dataset, place):
    folder = touch(dataset("sub-01_FLAIR", "sub-02_T1w"), place)
    found = find_pairs(folder)
    assert [pair.name for pair in found.pairs] == ["sub-01"]
    (said,) = found.left_out
    assert said.startswith(f"{place}: ")
    assert LEFT_OUT[place] in said
    assert not any(place in note for note in found.notes)


@pytest.mark.parametrize("name", NOTED)
def test_other_forms_of_a_scan_that_is_taken_are_noted(dataset, name):
    found = find_pairs(dataset("sub-01_FLAIR", "sub-01_acq-c_FLAIR", name))
    assert [pair.name for pair in found.pairs] == ["sub-01", "sub-01_acq-c"]
    assert found.left_out == []
    (note,) = found.notes
    assert note.startswith(f"sub-01/anat/{name}.nii.gz: {NOTED[name]}")


def test_the_phase_of_a_scan_whose_magnitude_is_named_so_is_noted(dataset):
    found = find_pairs(dataset("sub-01_part-mag_FLAIR", "sub-01_part-phase_FLAIR"))
    assert [pair.name for pair in found.pairs] == ["sub-01_part-mag"]
    assert (len(found.notes), found.left_out) == (1, [])


@pytest.mark.parametrize(
    "place",
    [
        "sub-02/anat/x/sub-02_FLAIR.nii.gz", "sub-02/sub-02_FLAIR.nii.gz", "sub-02_FLAIR.nii.gz",
        "sub-01/anat/sub-02_FLAIR.nii.gz", "sub-02/FLAIR/scan.nii.gz", "sub-02/a/b/c/FLAIR.nii.gz",
    ],
)  # fmt: skip
def test_a_visit_whose_flair_is_left_out_is_not_called_one_without(dataset, place):
    found = find_pairs(touch(dataset("sub-01_FLAIR", "sub-02_T1w", "sub-03_T1w"), place))
    assert len(found.left_out) == 1
    assert found.notes == ["visits without a FLAIR: sub-03"]


@pytest.mark.parametrize(
    "place",
    ["sub-02/ses-1/anat/x/sub-02_FLAIR.nii.gz", "sub-02/anat/sub-02_ses-1_flair.nii.gz"],
)
def test_a_session_whose_flair_is_left_out_is_not_called_one_without(dataset, place):
    found = find_pairs(
        touch(dataset("sub-01_FLAIR", "sub-02_ses-1_T1w", "sub-02_ses-2_T1w"), place)
    )
    assert len(found.left_out) == 1
    assert found.notes == ["visits without a FLAIR: sub-02/ses-2"]


def test_of_one_image_in_two_files_one_is_taken_and_the_other_named(dataset):
    folder = touch(dataset("sub-01_FLAIR"), "sub-01/anat/sub-01_FLAIR.nii")
    found = find_pairs(folder)
    assert [pair.flair.path.name for pair in found.pairs] == ["sub-01_FLAIR.nii"]
    (said,) = found.left_out
    assert said.startswith("sub-01/anat/sub-01_FLAIR.nii.gz: sub-01_FLAIR.nii is used")


def test_every_file_whose_name_speaks_of_flair_is_in_a_pair_or_named(dataset):
    folder = touch(dataset("sub-01_FLAIR", "sub-01_ses-1_FLAIR", *NOTED), *LEFT_OUT)
    found = find_pairs(folder)
    pairs = {pair.flair.path for pair in found.pairs}
    named = {folder / said.split(": ")[0] for said in (*found.left_out, *found.notes)}
    everything = {path for path in folder.rglob("*") if path.is_file()}
    assert pairs | named == everything
    assert not pairs & named


def test_images_of_a_folder_that_cannot_be_entered_are_not_passed_over(dataset, monkeypatch):
    folder = dataset("sub-01_FLAIR", "sub-02_FLAIR")
    real, locked = os.scandir, folder / "sub-02" / "anat"

    def scandir(path):
        if Path(path) == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    for participants in ((), ("01", "02")):
        found = find_pairs(folder, participants=participants)
        assert found.left_out == [f"{locked} cannot be read: Permission denied"]
        assert found.notes == []


def test_folders_that_are_links_are_entered_and_circles_are_not(dataset, tmp_path):
    folder = dataset("sub-01_FLAIR")
    elsewhere = touch(tmp_path / "elsewhere", "anat/sub-02_FLAIR.nii.gz")
    (folder / "sub-02").symlink_to(elsewhere)
    (folder / "sub-01" / "anat" / "loop").symlink_to(folder / "sub-01")
    assert [flair for flair, _ in taken(folder)] == ["sub-01_FLAIR", "sub-02_FLAIR"]
    assert find_pairs(folder).left_out == []


def test_a_link_without_its_file_is_a_pair_that_will_fail(dataset):
    folder = dataset("sub-01_FLAIR")
    (folder / "sub-01" / "anat" / "sub-01_run-2_FLAIR.nii.gz").symlink_to("gone")
    assert [flair for flair, _ in taken(folder)] == ["sub-01_FLAIR", "sub-01_run-2_FLAIR"]


def test_a_link_that_leads_to_itself_stops_no_subject(dataset):
    folder = dataset("sub-01_FLAIR", "sub-02_T1w")
    (folder / "loop").symlink_to("loop")
    (folder / "sub-01" / "anat" / "sub-01_run-2_FLAIR.nii.gz").symlink_to(
        "sub-01_run-2_FLAIR.nii.gz"
    )
    assert [flair for flair, _ in taken(folder)] == ["sub-01_FLAIR", "sub-01_run-2_FLAIR"]
    assert find_pairs(folder).left_out == []


@pytest.mark.parametrize("place", ["sub-03", "sub-01/ses-2", "sub-02/anat"])
@pytest.mark.parametrize("target", ["itself", "gone"])
def test_a_folder_that_is_a_link_without_a_target_is_named(dataset, place, target):
    folder = dataset("sub-01_FLAIR")
    (folder / "sub-02").mkdir()
    link = folder / place
    link.symlink_to(link.name if target == "itself" else "gone")
    assert [flair for flair, _ in taken(folder)] == ["sub-01_FLAIR"]
    (said,) = find_pairs(folder).left_out
    assert said == f"{link} is a file or a broken link; expected a folder"
    touch(folder, "sub-04/ses-3/anat/sub-04_ses-3_FLAIR.nii.gz")
    assert len(find_pairs(folder, sessions=["3"]).left_out) == (place != "sub-01/ses-2")


def test_datasets_that_lie_apart_are_named_as_such(dataset):
    folder = touch(
        dataset("sub-01_FLAIR"),
        *(f"derivatives/prep/sub-0{k}/anat/sub-0{k}_FLAIR.nii.gz" for k in range(5)),
        "sourcedata/sub-02/ses-1/anat/sub-02_ses-1_FLAIR.nii.gz",
    )
    found = find_pairs(folder)
    assert found.left_out == []
    derived, source = found.notes
    assert derived.startswith("derivatives is not part of a raw dataset")
    assert "derivatives/prep/sub-00/anat/sub-00_FLAIR.nii.gz" in derived
    assert "sourcedata/sub-02/ses-1/anat/sub-02_ses-1_FLAIR.nii.gz" in source


def test_a_t1_that_cannot_be_used_is_named(dataset):
    folder = touch(dataset("sub-01_FLAIR"), "sub-01/anat/sub-01_t1w.nii.gz")
    found = find_pairs(folder)
    assert found.notes == ["sub-01/anat/sub-01_t1w.nii.gz: its suffix is t1w; expected T1w"]
    assert found.left_out == []


def test_what_the_user_left_out_by_labels_or_filters_is_not_named(dataset):
    folder = dataset("sub-01_ses-1_FLAIR", "sub-01_ses-2_acq-a_FLAIR", "sub-02_ses-1_FLAIR")
    touch(folder, "sub-02/anat/sub-02_flair.nii.gz", "sub-01/ses-2/sub-01_ses-2_acq-b_FLAIR.nii.gz")
    for wanted in (
        {"participants": ["01"], "sessions": ["1"]},
        {"participants": ["01"], "filters": {"flair": {"ses": ["1"]}}},
    ):
        found = find_pairs(folder, **wanted)
        assert [pair.name for pair in found.pairs] == ["sub-01_ses-1"]
        assert found.left_out == []
    found = find_pairs(folder, participants=["01"], filters={"flair": {"acq": ["b", None]}})
    assert [said.split(":")[0] for said in found.left_out] == [
        "sub-01/ses-2/sub-01_ses-2_acq-b_FLAIR.nii.gz"
    ]


def test_a_participant_who_was_asked_for_and_has_no_flair_is_named(dataset):
    folder = dataset("sub-01_FLAIR", "sub-02_T1w")
    assert find_pairs(folder).left_out == []
    found = find_pairs(folder, participants=["01", "sub-02"])
    assert found.left_out == ["sub-02: no FLAIR was found"]


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
    assert find_pairs(folder).notes == []


def test_a_choice_among_runs_of_the_t1_is_said(dataset):
    folder = dataset("sub-01_FLAIR", "sub-01_run-1_T1w", "sub-01_run-2_T1w")
    assert taken(folder) == [("sub-01_FLAIR", "sub-01_run-1_T1w")]
    assert find_pairs(folder).notes == [
        "sub-01: of 2 T1w, sub-01_run-1_T1w.nii.gz is used; --bids-filter-file can choose another"
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
        ({"acquisition": "Query.NONE"}, "sub-01_run-02_FLAIR"),
        ({"acquisition": "<Query.ANY: 2>"}, "sub-01_acq-3d_run-01_FLAIR"),
        ({"acquisition": "Query.REQUIRED"}, "sub-01_acq-3d_run-01_FLAIR"),
        ({"acquisition": "Query.OPTIONAL", "run": 2}, "sub-01_run-02_FLAIR"),
        ({"acquisition": ["3d", None], "run": ["02"]}, "sub-01_run-02_FLAIR"),
        ({"acquisition": "^[0-9]d$", "regex_search": True}, "sub-01_acq-3d_run-01_FLAIR"),
        ({"datatype": "anat", "extension": ["nii.gz"], "run": 1}, "sub-01_acq-3d_run-01_FLAIR"),
    ],
)
def test_a_filter_chooses(dataset, tmp_path, wanted, left):
    folder = dataset("sub-01_acq-3d_run-01_FLAIR", "sub-01_run-02_FLAIR", "sub-01_T1w")
    (tmp_path / "filter.json").write_text(json.dumps({"flair": wanted}))
    assert taken(folder, filters=read_filter(tmp_path / "filter.json")) == [(left, "sub-01_T1w")]


def test_a_filter_of_the_usual_images_hides_no_misnamed_one(dataset):
    folder = dataset("sub-01_ses-1_FLAIR", "sub-01_ses-2_FLAIR")
    home = "sub-01/ses-1/anat"
    touch(folder, f"{home}/sub-01_ses-1_flair.nii.gz", f"{home}/sub-01_acq-a_FLAIR.nii.gz")
    wanted = {"datatype": ["anat"], "suffix": ["FLAIR"], "ses": ["1"]}
    found = find_pairs(folder, filters={"flair": wanted})
    assert [pair.name for pair in found.pairs] == ["sub-01_ses-1"]
    assert [said.split(": ")[0] for said in found.left_out] == [
        f"{home}/sub-01_acq-a_FLAIR.nii.gz", f"{home}/sub-01_ses-1_flair.nii.gz"
    ]  # fmt: skip


def test_a_filter_may_choose_images_of_another_suffix(dataset):
    folder = dataset("sub-01_acq-FLAIR_T2w", "sub-01_FLAIR", "sub-01_T1w", "sub-01_UNIT1")
    filters = {"flair": {"suffix": ["T2w"], "acq": ["FLAIR"]}, "t1w": {"suffix": ["UNIT1"]}}
    assert taken(folder, filters=filters) == [("sub-01_acq-FLAIR_T2w", "sub-01_UNIT1")]
    assert find_pairs(folder, filters=filters).left_out == []


def test_what_a_filter_says_of_other_images_is_left_alone(tmp_path, caplog):
    wanted = {
        "bold": {"task": "rest", "colour": 1}, "fmap": {"datatype": "fmap"}, "t2w": None,
        "sbref": {}, "flair": {"session": "1"},
    }  # fmt: skip
    (tmp_path / "filter.json").write_text(json.dumps(wanted))
    assert read_filter(tmp_path / "filter.json") == {"flair": {"ses": ["1"]}}
    assert caplog.text == ""
    (tmp_path / "filter.json").write_text('{"falir": {"session": "1"}}')
    assert read_filter(tmp_path / "filter.json") == {}
    assert "not used: falir; expected flair or t1w" in caplog.text


def test_an_image_that_is_null_in_a_filter_file_has_no_filter(tmp_path, caplog):
    (tmp_path / "filter.json").write_text('{"flair": null, "t1w": {"run": 1}}')
    assert read_filter(tmp_path / "filter.json") == {"t1w": {"run": ["1"]}}
    assert caplog.text == ""


@pytest.mark.parametrize("image", ["flair", "t1w"])
@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("scope", "raw"), ("scope", ["raw", "derivatives"]), ("invalid_filters", "allow"),
        ("absolute_paths", True), ("return_type", "file"), ("target", "subject"),
    ],
)  # fmt: skip
def test_arguments_of_pybids_that_are_no_entities_are_left_alone_with_a_warning(
    tmp_path, caplog, image, argument, value
):
    content = {image: {argument: value, "acquisition": "3d"}}
    (tmp_path / "filter.json").write_text(json.dumps(content))
    assert read_filter(tmp_path / "filter.json") == {image: {"acq": ["3d"]}}
    (record,) = caplog.records
    assert f"{image}: not used: {argument}; expected entities of BIDS" in record.getMessage()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"flair": "3d"}, "flair is '3d'; expected an object of entities and their labels"),
        ({"flair": []}, "flair is []; expected an object"),
        ({"flair": {"colour": "red"}}, "filters by 'colour'; expected an entity of BIDS, such as"),
        ({"t1w": {"run": {"is": 1}}}, "t1w: run is {'is': 1}; expected a label, a list of labels"),
        ({"t1w": {"run": [True]}}, "t1w: run is True; expected a label"),
        ({"flair": {"regex_search": "yes"}}, "regex_search is 'yes'; expected true or false"),
        ({"flair": {"acq": "(", "regex_search": True}}, "flair: acq '(' is not a regular"),
    ],
)
def test_a_filter_that_is_none_is_refused(tmp_path, content, said):
    (tmp_path / "filter.json").write_text(json.dumps(content))
    with pytest.raises(LeukoError) as told:
        read_filter(tmp_path / "filter.json")
    assert said in str(told.value)


def test_what_is_not_there_is_named(dataset, tmp_path):
    with pytest.raises(LeukoError, match="does not exist or is not a folder"):
        find_pairs(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LeukoError, match="holds no sub-\\* folder"):
        find_pairs(tmp_path / "empty")
    folder = dataset("sub-01_ses-a_FLAIR", "sub-02_ses-a_T1w")
    with pytest.raises(LeukoError, match="has no participant 03, 04"):
        find_pairs(folder, participants=["01", "03", "04"])
    with pytest.raises(LeukoError, match="has no session b, c"):
        find_pairs(folder, sessions=["a", "b", "ses-c"])
    with pytest.raises(LeukoError, match="holds no FLAIR; expected one such as"):
        find_pairs(folder, participants=["02"])
    with pytest.raises(LeukoError, match="holds no FLAIR that passes the filter"):
        find_pairs(folder, filters={"flair": {"acq": "x"}})


def test_visits_without_a_flair_are_named(dataset):
    folder = dataset("sub-01_ses-a_FLAIR", "sub-01_ses-b_T1w", "sub-02_T1w")
    assert find_pairs(folder).notes == ["visits without a FLAIR: sub-01/ses-b, sub-02"]


def test_where_no_flair_can_be_taken_the_reasons_are_given(dataset):
    folder = touch(dataset("sub-01_T1w"), "sub-01/anat/sub-01_flair.nii.gz")
    with pytest.raises(
        LeukoError, match=r"holds no FLAIR; expected one such as .*; sub-01/anat/sub-01_flair"
    ):
        find_pairs(folder)


def test_labels_may_have_a_plus(dataset):
    assert taken(dataset("sub-01+a_FLAIR", "sub-01+a_T1w")) == [("sub-01+a_FLAIR", "sub-01+a_T1w")]


def test_a_raw_dataset_is_left_alone(dataset, tmp_path):
    folder = dataset("sub-01_FLAIR")
    before = sorted(folder.rglob("*"))
    link = tmp_path / "link"
    link.symlink_to(folder)
    with pytest.raises(LeukoError, match=r"link is the dataset itself; .*derivatives/leuko"):
        start_dataset(link, folder)
    with pytest.raises(LeukoError, match=r"holds sub-\* folders that Leuko did not write"):
        start_dataset(folder, tmp_path / "another")
    assert sorted(folder.rglob("*")) == before


def test_the_dataset_of_another_program_is_left_alone(dataset, tmp_path):
    folder = dataset("sub-01_FLAIR")
    (folder / "dataset_description.json").write_text('{"Name": "raw", "BIDSVersion": "1.8.0"}')
    with pytest.raises(LeukoError, match="is a dataset of another program"):
        start_dataset(folder, tmp_path)
    start_dataset(tmp_path / "out", folder)
    before = (tmp_path / "out" / "dataset_description.json").stat()
    start_dataset(tmp_path / "out", folder)
    assert (tmp_path / "out" / "dataset_description.json").stat() == before
