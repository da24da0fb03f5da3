"""Three and more visits: one space, lesions that are followed, merge and split, and their files."""

import csv
import itertools
import json
import re
import shutil
from dataclasses import fields, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from conftest import SMALL
from leuko.cohort.derivatives import arrange
from leuko.errors import LeukoError
from leuko.io.record import RunRecord
from leuko.longitudinal.changes import BORDER_MM, Time, find_changes, follow
from leuko.longitudinal.compare import compare, files
from leuko.longitudinal.midspace import mean_space
from leuko.longitudinal.record import (
    VERSION,
    ComparisonRecord,
    Floor,
    MidspaceRecord,
    VisitRecord,
)
from leuko.longitudinal.report import _shown_visits, _words
from leuko.report.plots import _ticks
from leuko.volume import Volume
from phantoms import make_phantom
from visits import HERE, THERE, motion, run_of, spot

PAGE = Path(__file__).parents[2] / "docs" / "record.md"
SIZE = {"shape": (80, 96, 60), "spacing_mm": (2.0, 2.0, 2.5), "lesions": 0}
GRID = Volume(np.zeros((30, 24, 24), dtype=np.uint8), np.eye(4))
APART = ((slice(4, 10), slice(8, 14), slice(8, 14)), (slice(18, 24), slice(8, 14), slice(8, 14)))
BRIDGE = (slice(10, 18), slice(9, 13), slice(9, 13))


def seen(*boxes):
    """A visit with lesions in these boxes, half as bright again as tissue."""
    mask = np.zeros(GRID.data.shape, dtype=bool)
    for box in boxes:
        mask[box] = True
    return Time(mask, 0.9 * mask, 100 + 50.0 * mask)


NONE, TWO, ONE = seen(), seen(*APART), seen(*APART, BRIDGE)
ML, BRIDGE_ML = 2 * 6**3 / 1000, 8 * 4 * 4 / 1000  # of both boxes, of the bridge


def test_lesions_that_meet_have_merged_and_backwards_in_time_have_split():
    for visits, events in (([TWO, ONE], ("merged",)), ([ONE, TWO], ("split",))):
        (lesion,) = follow(visits, GRID).lesions
        assert lesion.events == (events,)
        assert sorted(lesion.ml) == pytest.approx([ML, ML + BRIDGE_ML])


def test_a_lesion_may_merge_with_one_and_split_from_another_at_once():
    third = (slice(4, 10), slice(8, 14), slice(18, 22))
    link = (slice(5, 9), slice(9, 13), slice(14, 18))
    before, after = seen(*APART, third, BRIDGE), seen(*APART, third, link)
    assert follow([before, after], GRID).lesions[0].events == (("merged", "split"),)


def test_a_bridge_that_the_flair_does_not_show_is_no_event():
    faint = replace(ONE, flair=TWO.flair)
    assert follow([TWO, faint, TWO], GRID).lesions[0].events == ((), ())


def test_a_part_below_the_smallest_lesion_does_not_merge():
    speck = (slice(18, 20), slice(10, 12), slice(10, 12))
    visits = [seen(APART[0], speck), ONE]
    assert follow(visits, GRID).lesions[0].events == (("merged",),)
    assert follow(visits, GRID, smallest_mm3=10).lesions[0].events == ((),)


@pytest.mark.parametrize("visits", list(itertools.permutations([seen(APART[0]), TWO, ONE, NONE])))
def test_other_visits_do_not_change_what_is_found_between_two(visits):
    course = follow(visits, GRID)
    pairs = [*itertools.pairwise(visits), (visits[0], visits[-1])]
    for found, pair in zip([*course.intervals, course.overall], pairs, strict=True):
        alone = find_changes(*pair, GRID)
        assert (found.counts, found.event_counts) == (alone.counts, alone.event_counts)
        assert found.change_by_state == pytest.approx(alone.change_by_state)
        np.testing.assert_array_equal(found.states, alone.states)


def test_a_lesion_that_merges_later_is_new_before():
    course = follow([seen(APART[0]), TWO, ONE], GRID)
    (lesion,) = course.lesions
    assert lesion.states == (("new", "stable"), ("stable",))
    assert lesion.events == ((), ("merged",))
    assert [(part.id, part.part, part.state) for part in course.intervals[0].lesions] == [
        (1, 1, "stable"),
        (1, 2, "new"),
    ]


def test_a_lesion_has_one_number_through_all_visits_and_no_volume_where_it_is_absent():
    first, second = (seen(box) for box in APART)
    course = follow([NONE, first, TWO, second, NONE, NONE], GRID)
    lesions = {lesion.id: lesion for lesion in course.lesions}
    assert [lesion.states for lesion in lesions.values()] == [
        (("new",), ("stable",), ("resolved",), (), ()),
        ((), ("new",), ("stable",), ("resolved",), ()),
    ]
    half = ML / 2
    assert lesions[1].ml == pytest.approx([0, half, half, 0, 0, 0])
    assert lesions[2].ml == pytest.approx([0, 0, half, half, 0, 0])
    assert course.ml == pytest.approx([0, half, ML, half, 0, 0])
    assert course.overall.lesions == []
    assert [changes.counts["new"] for changes in course.intervals] == [1, 1, 0, 0, 0]
    assert course.floor_ml(0, 2) == pytest.approx(course.surface_mm2[2] / 2 * BORDER_MM / 1000)


def test_the_mean_space_does_not_depend_on_the_scan_that_all_are_registered_to():
    poses = [
        motion((4, -7, 11), (5, -3, 20)),
        motion((0, 9, -6), (-8, 2, 1)),
        motion((20, 0, 3), (0, 0, 9)),
    ]
    for count in (2, 3):
        found = []
        for first in poses[:count]:
            motions = [pose @ np.linalg.inv(first) for pose in poses[:count]]
            found.append(mean_space(motions))
            meeting = [way @ pose for way, pose in zip(found[-1], poses[:count], strict=True)]
            assert np.allclose(meeting, meeting[0])
        assert np.allclose(found, found[0])


@pytest.fixture(scope="module")
def head():
    return make_phantom(np.random.default_rng(3), **SIZE).flair


def visits_of(folder, head, poses):
    """One lesion that stays and one that comes and goes."""
    stays, comes = spot(head, HERE, 11), spot(head, THERE, 9)
    return [
        run_of(folder / name, replace(head, affine=pose @ head.affine), mask)
        for name, mask, pose in zip("abc", (stays, stays | comes, stays), poses, strict=True)
    ]


@pytest.fixture(scope="module")
def moved(head, tmp_path_factory):
    """Visits in three positions of the head."""
    poses = np.eye(4), motion((3, -2, 5), (4, -6, 3)), motion((-4, 3, -2), (-3, 5, -2))
    return visits_of(tmp_path_factory.mktemp("moved"), head, poses)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Visits in one position, of a coarser head."""
    brain = make_phantom(np.random.default_rng(3), **SMALL | {"lesions": 0}).flair
    nearly = [motion((0, 0, 0), (0.5 * k, 0, 0)) for k in range(3)]
    return visits_of(tmp_path_factory.mktemp("three"), brain, nearly)


@pytest.fixture(scope="module")
def compared(moved, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared") / "out"
    return out, compare(*moved, out)


def test_a_lesion_that_comes_and_goes_is_new_and_then_resolved(compared, head):
    _, result = compared
    stays, comes = result.course.lesions
    assert stays.states == (("stable",), ("stable",))
    assert comes.states == (("new",), ("resolved",))
    assert stays.ml == pytest.approx([head.ml(spot(head, HERE, 11))] * 3, rel=0.1)
    assert comes.ml == pytest.approx([0, head.ml(spot(head, THERE, 9)), 0], rel=0.1)
    assert [lesion.state for lesion in result.changes.lesions] == ["stable"]


def test_the_files_of_three_visits_are_there_on_one_grid(compared):
    out, _ = compared
    assert sorted(path.name for path in out.iterdir()) == sorted(files(3))
    images = [nib.load(path) for path in out.glob("*.nii.gz")]
    assert len({image.shape for image in images}) == 1
    marks = [
        set(np.unique(np.asanyarray(nib.load(out / f"{name}.nii.gz").dataobj)))
        for name in ("changes_visit1_visit2", "changes_visit2_visit3", "changes")
    ]
    assert [found - {3} for found in marks] == [{0, 1}, {0, 5}, {0}]


def test_the_table_has_a_row_for_each_lesion_and_columns_for_each_visit(compared):
    out, result = compared
    with (out / "visits.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [row["visit2_visit3_state"] for row in rows] == ["stable", "resolved"]
    assert [row["visit1_ml"] for row in rows][1] == "0"
    assert rows[0]["visit1_visit2_events"] == "n/a"
    assert float(rows[1]["visit2_ml"]) == pytest.approx(result.course.lesions[1].ml[1], rel=1e-5)


def test_the_record_tells_each_interval_and_the_way_of_each_visit(compared):
    out, result = compared
    record = json.loads((out / "compare.json").read_text())
    assert list(record["inputs"]) == ["visit1", "visit2", "visit3"]
    assert [interval["visits"] for interval in record["intervals"]] == [
        ["visit1", "visit2"],
        ["visit2", "visit3"],
    ]
    assert record["checks"][0] == "motion"
    assert [interval["lesions"]["new"] for interval in record["intervals"]] == [1, 0]
    assert record["change_ml"] == pytest.approx(
        sum(interval["change_ml"] for interval in record["intervals"]), abs=1e-3
    )
    assert record["alignment"]["registered_to"] not in record["alignment"]["moved_mm"]
    for name, way in zip(record["inputs"], result.midspace.ways, strict=True):
        assert np.allclose(record["alignment"]["to_midspace"][name], way, atol=1e-5)


def test_the_page_of_the_record_explains_each_field_once():
    page = PAGE.read_text(encoding="utf-8").split("## The record of a comparison")[1]
    rows = re.findall(r"^\| (`.*?`) \|", page, re.MULTILINE)
    explained = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    names = [field.name for field in fields(ComparisonRecord)] + ["intervals.visits"]
    for part, kind in (("inputs", VisitRecord), ("floor", Floor), ("alignment", MidspaceRecord)):
        names += [f"{part}.{field.name}" for field in fields(kind)]
    assert sorted(explained) == sorted(names)
    assert f"`record_version` is {VERSION}." in page


def test_the_order_of_the_visits_does_not_change_their_space(compared, moved, tmp_path):
    _, result = compared
    order = [2, 0, 1]
    other = compare(*(moved[k] for k in order), tmp_path / "out")
    assert np.array_equal(other.midspace.grid.affine, result.midspace.grid.affine)
    assert np.array_equal(other.course.overall.numbers, result.course.overall.numbers)
    for k, way in zip(order, other.midspace.ways, strict=True):
        assert np.array_equal(way, result.midspace.ways[k])
    ml = [lesion.ml for lesion in result.course.lesions]
    assert [lesion.ml for lesion in other.course.lesions] == [
        tuple(volumes[k] for k in order) for volumes in ml
    ]


def test_the_visits_and_the_person_are_named_as_given(three, leuko, tmp_path):
    labels = [part for name in ("2020", "2022", "<2024>") for part in ("--visit-label", name)]
    code, out, err = leuko("compare", *three, "-o", tmp_path, *labels, "--label", "sub-01")
    assert code == 0, err
    lines = {line.split("  ")[0]: line for line in out.splitlines()}
    assert "beyond the noise floor" in lines["2022"]
    assert lines["2022"].endswith("1 new")
    assert lines["<2024>"].endswith("1 resolved")
    assert "common space" in lines["each scan"]
    assert str(tmp_path / "visits.tsv") in out
    page = (tmp_path / "report.html").read_text()
    assert ">&lt;2024&gt;</button>" in page
    assert ">new, resolved</td>" in page
    assert "the separate segmentations gave" in page
    assert str(three[0]) not in page.split('class="details"')[0]
    assert (
        json.loads((tmp_path / "compare.json").read_text())["inputs"]["visit2"]["label"] == "2022"
    )


def test_the_page_shows_a_curve_with_its_floor_and_all_visits(compared):
    out, result = compared
    html = (out / "report.html").read_text()
    shown = json.loads(re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1])
    assert [pane["title"] for pane in shown["panes"]] == ["Visit 1", "Visit 2", "Visit 3"]
    kinds = [{k for runs in pane["runs"] for k in runs[3::4]} for pane in shown["panes"]]
    assert kinds[1] - {3} == {1}  # new at the second visit, before it is resolved
    assert "noise floor of a change since Visit 1" in html
    floor = result.course.floor_ml(0, 2)
    assert f"<td>{result.course.ml[2]:.2f}</td><td>{floor:.2f}</td>" in html


def test_an_event_is_told_beside_the_state():
    assert _words("grown", ("merged", "split")) == "grown (merged, split)"
    assert _words("", ()) == "absent"


def test_of_many_visits_the_page_shows_six_with_the_first_and_the_last():
    assert _shown_visits(3) == [0, 1, 2]
    assert _shown_visits(12) == [0, 2, 4, 7, 9, 11]


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_an_accessibility_checker_finds_nothing(opened, compared, scheme, width):
    from axe_playwright_python.sync_playwright import Axe

    view = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
    page = opened(compared[0] / "report.html", **view)
    page.locator("section.details summary").click()
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.browser
def test_a_row_of_the_table_shows_its_lesion_at_all_visits(opened, compared):
    page = opened(compared[0] / "report.html")
    page.locator("tr[data-id='2'] .go").click()
    shown = page.locator(".stage img").evaluate_all("images => images.map((i) => i.alt)")
    assert [alt.split(", ")[-1] for alt in shown] == ["1 lesion", "2 lesions", "1 lesion"]


def test_a_brain_without_lesions_has_a_curve_at_zero(tmp_path):
    brain = make_phantom(np.random.default_rng(3), **SMALL | {"lesions": 0}).flair
    none = np.zeros(brain.data.shape, dtype=bool)
    run = run_of(tmp_path / "run", brain, none)
    found = compare(run, run, run, tmp_path / "out")
    assert (found.course.lesions, found.course.ml) == ([], (0, 0, 0))
    assert "noise floor of a change" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(("least", "most"), [(0, 0.05), (4.2, 13.3), (5, 5), (0.98, 101), (26, 33)])
def test_an_axis_encloses_its_range_with_few_round_numbers(least, most):
    ticks = _ticks(least, most)
    assert ticks[0] <= least + 1e-9
    assert ticks[-1] >= most - 1e-9
    assert 2 <= len(ticks) <= 7
    assert all(len(f"{tick:g}") <= 5 for tick in ticks)


def test_labels_that_do_not_fit_the_visits_are_refused(three, leuko, tmp_path):
    for labels in (["a", "b"], ["a", "b", "a"]):
        options = [part for name in labels for part in ("--visit-label", name)]
        code, _, err = leuko("compare", *three, "-o", tmp_path / "out", *options)
        assert code == 2
        assert "3 visits need 3 different labels" in err


def test_one_visit_is_refused(three, leuko, tmp_path):
    code, _, err = leuko("compare", three[0], "-o", tmp_path / "out")
    assert code == 2
    assert "got one visit, expected two or more" in err


def test_a_visit_of_someone_else_is_refused_by_its_name(three, tmp_path):
    other = make_phantom(np.random.default_rng(77), **SMALL | {"lesions": 0}).flair
    stranger = run_of(tmp_path / "other", other, spot(other, HERE, 11))
    with pytest.raises(LeukoError, match="one person") as error:
        compare(*three[:2], stranger, tmp_path / "out")
    assert f"Visit 3 ({stranger / 'flair.nii.gz'})" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_files_that_only_an_earlier_comparison_wrote_are_deleted(three, tmp_path):
    compare(*three, tmp_path)
    (tmp_path / "flair_mine.nii.gz").write_bytes(b"")
    compare(*three[:2], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [*files(2), "flair_mine.nii.gz"]
    )


@pytest.fixture
def dataset(three, tmp_path):
    """The visits as BIDS derivatives, and the folders of their sessions."""
    sessions = []
    for k, run in enumerate(three):
        session = tmp_path / "derivatives" / "sub-01" / f"ses-{k}"
        (session / "anat").mkdir(parents=True)
        copy = shutil.copytree(run, tmp_path / f"copy{k}")
        arrange(copy, session / "anat", f"sub-01_ses-{k}_space-FLAIR_", ["bids:raw:flair"])
        sessions.append(session)
    return sessions


def test_bids_derivatives_are_visits_and_not_segmented_again(three, dataset, tmp_path):
    by_folder = compare(*three, tmp_path / "folders")
    records = [next(session.glob("anat/*_stats.json")) for session in dataset]
    for visits in (dataset, [session / "anat" for session in dataset], records):
        found = compare(*visits, tmp_path / "out")
        assert found.course.lesions == by_folder.course.lesions
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(files(3))
    record = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert record["inputs"]["visit1"]["path"] == str(records[0])


def test_a_session_with_several_results_is_refused(dataset, tmp_path):
    (record,) = dataset[0].glob("anat/*_stats.json")
    other = record.with_name("sub-01_ses-0_run-2_space-FLAIR_label-WMH_stats.json")
    shutil.copy(record, other)
    with pytest.raises(LeukoError, match="several results; give one of the records") as error:
        compare(*dataset, tmp_path / "out")
    assert other.name in str(error.value)


def test_given_masks_are_compared_with_a_note(three, tmp_path):
    folders = []
    for k, run in enumerate(three):
        folder = tmp_path / str(k)
        folder.mkdir()
        record = RunRecord.read(run / "run.json")
        replace(record, command="measure").write(folder / "run.json")
        (folder / "wmh.nii.gz").write_bytes((run / "wmh.nii.gz").read_bytes())
        folders.append(folder)
    result = compare(*folders, tmp_path / "out")
    assert [found.code for found in result.findings] == ["given-masks"]
    assert [lesion.states for lesion in result.course.lesions] == [
        (("stable",), ("stable",)),
        (("new",), ("resolved",)),
    ]
    mixed = compare(three[0], *folders[1:], tmp_path / "out").findings
    assert any(
        found.text.startswith("the 3 runs differ in masks (by Leuko, given") for found in mixed
    )
