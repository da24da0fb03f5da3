"""Two times of one brain: what is called change, where the two meet, and what is refused."""

import csv
import json
import logging
import re
from dataclasses import asdict, replace

import nibabel as nib
import numpy as np
import pytest

from conftest import SMALL, stored
from leuko.errors import LeukoError
from leuko.io import nifti
from leuko.io.record import Inputs, RunRecord
from leuko.longitudinal.changes import LESION_BORDER_MM, WHY_STABLE, Time, find_changes
from leuko.longitudinal.compare import FILES, compare
from leuko.longitudinal.midspace import mean_space, meet
from leuko.volume import Volume, resample_onto
from phantoms import make_phantom
from reports import assert_runs_only_its_own, finding
from visits import HERE, THERE, motion, run_of, spot

BOX = np.zeros((24, 24, 24), dtype=bool)
GRID = Volume(BOX.astype(np.uint8), np.eye(4))
OTHER_WAY = {"new": "resolved", "grown": "shrunk", "stable": "stable"}
OTHER_WAY |= {there: here for here, there in OTHER_WAY.items()}


def cube(corner, side):
    mask = BOX.copy()
    mask[tuple(slice(start, start + side) for start in corner)] = True
    return mask


def time(mask):
    """A FLAIR whose lesions are half as bright again as its tissue."""
    return Time(mask, 0.9 * mask, 100 + 50.0 * mask)


def only_state(before, after, **changes):
    (lesion,) = find_changes(time(before), time(after), GRID, **changes).lesions
    return lesion


def test_each_state_is_told_with_its_volumes():
    small, large = cube((8, 8, 8), 4), cube((6, 6, 6), 8)
    for before, after, state in (
        (BOX, small, "new"),
        (small, large, "grown"),
        (large, large, "stable"),
        (large, small, "shrunk"),
        (small, BOX, "resolved"),
    ):
        lesion = only_state(before, after)
        assert lesion.state == state
        assert lesion.baseline_ml == pytest.approx(before.sum() / 1000)
        assert lesion.followup_ml == pytest.approx(after.sum() / 1000)
        assert lesion.change_ml == pytest.approx((int(after.sum()) - int(before.sum())) / 1000)


def test_growth_is_told_in_percent_of_the_baseline():
    assert only_state(cube((8, 8, 8), 4), cube((6, 6, 6), 8)).change_percent == pytest.approx(700)
    assert np.isnan(only_state(BOX, cube((8, 8, 8), 4)).change_percent)


def test_the_floor_is_the_surface_of_both_times_times_the_border():
    lesion = only_state(cube((8, 8, 8), 4), cube((6, 6, 6), 8))
    assert lesion.floor_ml == pytest.approx(LESION_BORDER_MM * (6 * 16 + 6 * 64) / 2 / 1000)


def test_volumes_and_surfaces_count_the_sides_of_a_voxel():
    mask = cube((8, 8, 8), 2)
    grid = replace(GRID, affine=np.diag([1.0, 2.0, 5.0, 1.0]))
    found = find_changes(time(mask), time(mask), grid)
    assert found.baseline_ml == pytest.approx(0.08)
    assert found.surface_mm2 == pytest.approx(2 * (2 * 4 + 4 * 10 + 2 * 10))
    assert (found.lesions[0].x_mm, found.lesions[0].z_mm) == (8.5, 42.5)


def test_a_border_that_wanders_below_the_floor_is_stable():
    before = cube((6, 6, 6), 8)
    after = before.copy()
    after[14, 8:12, 8:12] = True  # 16 voxels of a floor of 142
    assert only_state(before, after).state == "stable"


def test_masks_that_differ_where_the_flair_does_not_are_stable():
    mask = cube((8, 8, 8), 6)
    flair = 100 + 50.0 * mask
    missed, found = Time(BOX, 0.0 * mask, flair), Time(mask, 0.9 * mask, flair)
    for pair in ((missed, found), (found, missed)):
        changes = find_changes(*pair, GRID)
        assert changes.counts["stable"] == 1
        assert abs(changes.change_ml) == pytest.approx(0.216)


def test_a_flair_that_changed_the_other_way_is_no_evidence():
    mask = cube((8, 8, 8), 6)
    darker = Time(mask, 0.9 * mask, 100 - 50.0 * mask)
    assert find_changes(time(BOX), darker, GRID).counts["stable"] == 1


def test_lesions_that_met_or_parted_are_one():
    parts = cube((4, 8, 8), 4) | cube((14, 8, 8), 4)
    whole = parts.copy()
    whole[8:14, 8:12, 8:12] = True
    assert only_state(parts, whole).baseline_ml == pytest.approx(0.128)


def test_what_is_small_at_both_times_together_is_left_out():
    mask = cube((8, 8, 8), 2)
    found = find_changes(time(BOX), time(mask), GRID, smallest_mm3=10)
    assert (found.lesions, found.followup_ml, found.surface_mm2) == ([], 0, 0)


def test_no_lesion_at_either_time_is_no_change():
    found = find_changes(time(BOX), time(BOX), GRID)
    assert found.lesions == []
    assert (found.change_ml, found.floor_ml, found.is_beyond_floor) == (0, 0, False)
    assert not found.states.any()


def test_only_what_was_gained_or_lost_is_marked_as_changed():
    small, large = cube((8, 8, 8), 4), cube((6, 6, 6), 8)
    grown = find_changes(time(small), time(large), GRID).states
    assert (grown[small] == 3).all()
    assert (grown[large & ~small] == 2).all()
    assert not grown[~large].any()
    assert (find_changes(time(BOX), time(small), GRID).states[small] == 1).all()
    assert (find_changes(time(small), time(BOX), GRID).states[small] == 5).all()


@pytest.mark.parametrize("seed", range(10))
def test_time_may_run_backwards(seed):
    rng = np.random.default_rng(seed)
    times = []
    for _ in range(2):
        mask = BOX.copy()
        for _ in range(5):
            mask |= cube(rng.integers(0, 20, size=3), int(rng.integers(1, 7)))
        times.append(time(mask))
    there, back = find_changes(*times, GRID), find_changes(*times[::-1], GRID)
    assert back.change_ml == pytest.approx(-there.change_ml)
    assert back.floor_ml == pytest.approx(there.floor_ml)
    assert [OTHER_WAY[lesion.state] for lesion in there.lesions] == [
        lesion.state for lesion in back.lesions
    ]
    assert np.array_equal(there.numbers, back.numbers)


def test_half_a_motion_done_twice_is_the_motion():
    for whole in (np.eye(4), motion((4, -7, 11), (5, -3, 20)), motion((0, 0, 120), (1, 2, 3))):
        part, back = mean_space([np.eye(4), whole])
        assert np.allclose(part @ part, whole)
        assert np.allclose(part @ back, np.eye(4))
        assert np.allclose(part[:3, :3] @ part[:3, :3].T, np.eye(3))


@pytest.fixture(scope="module")
def brain():
    """A head without lesions, and its white matter."""
    return make_phantom(np.random.default_rng(3), **SMALL | {"lesions": 0}).flair


@pytest.fixture(scope="module")
def head():
    """Finer: one that can be registered well."""
    size = {"shape": (80, 96, 60), "spacing_mm": (2.0, 2.0, 2.5), "lesions": 0}
    return make_phantom(np.random.default_rng(3), **size).flair


def test_two_scans_meet_halfway(head):
    moved = motion((3, -2, 5), (4, -6, 3))
    found = meet([head, replace(head, affine=moved @ head.affine)], threads=2)
    first, second = found.ways
    points = np.array([[0, 0, 0, 1], [50, 0, 0, 1], [0, -60, 0, 1], [0, 0, 40, 1.0]])
    off = points @ (first - second @ moved).T
    assert np.linalg.norm(off, axis=1).max() < 0.3
    assert np.allclose(first @ second, np.eye(4))


def test_the_halfway_grid_holds_both_scans_and_is_as_fine_as_either(head):
    coarse = replace(head, data=head.data[::2, :, ::2], affine=head.affine @ np.diag([2, 1, 2, 1]))
    coarse = stored(replace(coarse, affine=motion((0, 0, 4), (9, 0, 0)) @ coarse.affine), (2, 0, 1))
    found = meet([head, coarse], threads=2)
    assert found.grid.spacing_mm == pytest.approx((2.0, 2.0, 2.5))
    for scan, way in zip((head, coarse), found.ways, strict=True):
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in scan.data.shape])).reshape(3, -1)
        places = way @ scan.affine @ np.vstack([corners, np.ones(8)])
        at = (np.linalg.inv(found.grid.affine) @ places)[:3].T
        assert (at > -0.01).all()
        assert (at < np.array(found.grid.data.shape) - 0.99).all()


def test_how_a_scan_is_stored_does_not_matter(brain):
    twin = stored(brain, (1, 2, 0), (-1, 1, -1))
    first, second = meet([brain, twin], threads=1).bring([brain, twin])
    assert first.shape == second.shape
    assert np.abs(first - second).mean() < 0.02 * first.mean()


@pytest.fixture(scope="module")
def times(brain, tmp_path_factory):
    """One lesion at first; then that one, unchanged, and another."""
    folder = tmp_path_factory.mktemp("times")
    stays, comes = spot(brain, HERE, 11), spot(brain, THERE, 11)
    return (
        run_of(folder / "before", brain, stays),
        run_of(folder / "after", brain, stays | comes),
    )


@pytest.fixture(scope="module")
def compared(times, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared") / "out"
    return out, compare(*times, out)


def test_the_lesion_that_came_is_new_and_the_other_stable(compared):
    out, result = compared
    assert result.changes.counts == {
        "new": 1, "grown": 0, "stable": 1, "shrunk": 0, "resolved": 0,
    }  # fmt: skip
    with (out / "changes.tsv").open() as file:
        rows = {row["state"]: row for row in csv.DictReader(file, delimiter="\t")}
    place = [float(rows["new"][f"{axis}_mm"]) for axis in "xyz"]
    assert np.linalg.norm(np.array(place) - THERE) < 8
    assert rows["new"]["baseline_ml"] == "0"
    assert rows["new"]["change_percent"] == "n/a"


def test_all_files_are_there_on_one_grid(compared):
    out, _ = compared
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    images = [nib.load(path) for path in out.glob("*.nii.gz")]
    assert len({image.shape for image in images}) == 1
    assert all(np.array_equal(image.affine, images[0].affine) for image in images)
    marked = np.asanyarray(nib.load(out / "changes.nii.gz").dataobj)
    assert marked.dtype == np.uint8
    assert set(np.unique(marked)) == {0, 1, 3}


def test_the_record_tells_the_change_with_its_floor(compared):
    out, result = compared
    record = json.loads((out / "compare.json").read_text())
    assert record["command"] == "compare"
    assert record["change_ml"] == pytest.approx(result.changes.change_ml, abs=1e-4)
    assert record["floor_ml"] == pytest.approx(result.changes.floor_ml, abs=1e-4)
    assert record["lesions"]["new"] == 1
    assert record["findings"] == []
    assert record["checks"][0] == "motion"  # at both times


def test_a_label_is_in_the_record_and_in_title_header_and_prints(compared, times, leuko, tmp_path):
    out, _ = compared
    assert "label" not in json.loads((out / "compare.json").read_text())
    answer = leuko("compare", *times, "-o", tmp_path / "out", "--label", "sub-01 <a>")
    assert answer[0] == 0, answer[2]
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["label"] == "sub-01 <a>"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<title>sub-01 &lt;a&gt;: White matter" in page
    assert '<span class="label">sub-01 &lt;a&gt;</span>' in page
    assert r'@top-right { content: "sub\2d 01' in page


def test_the_report_shows_both_times_side_by_side(compared):
    out, result = compared
    html = (out / "report.html").read_text()
    assert_runs_only_its_own(html)
    shown = json.loads(re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1])
    before, after = shown["panes"]
    assert (before["title"], after["title"]) == ("Baseline", "Follow-up")
    assert (before["width"], before["height"]) == (after["width"], after["height"])
    assert len(before["runs"]) == len(after["runs"]) > 5
    kinds = [{k for runs in pane["runs"] for k in runs[3::4]} for pane in shown["panes"]]
    assert kinds == [{3}, {1, 3}]
    assert f"{result.changes.change_ml:+.2f} mL" in html
    assert f"noise floor of {result.changes.floor_ml:.2f} mL" in html
    assert html.count(">new</td>") == html.count(">stable</td>") == 1


def test_what_was_said_of_either_run_is_said_again(times, tmp_path):
    path = times[0] / "run.json"
    record = RunRecord.read(path)
    replace(record, findings=(finding("<dark>"),)).write(path)
    try:
        compare(*times, tmp_path / "out")
    finally:
        record.write(path)
    said = json.loads((tmp_path / "out" / "compare.json").read_text())["findings"]
    assert said == [asdict(finding("baseline: <dark>"))]
    assert "baseline: &lt;dark&gt;" in (tmp_path / "out" / "report.html").read_text()


def test_swapped_times_give_the_opposite(times, compared, tmp_path):
    _, there = compared
    back = compare(*times[::-1], tmp_path / "out").changes
    assert back.change_ml == pytest.approx(-there.changes.change_ml)
    assert back.counts["resolved"] == 1
    assert [OTHER_WAY[lesion.state] for lesion in back.lesions] == [
        lesion.state for lesion in there.changes.lesions
    ]


def test_one_time_against_itself_has_no_change_and_is_warned_of(times, tmp_path):
    result = compare(times[1], times[1], tmp_path / "out")
    found = result.changes
    assert found.change_ml == 0
    assert set(found.counts) - {"stable"} == {s for s, n in found.counts.items() if n == 0}
    assert found.counts["stable"] == 2
    assert [told.text for told in result.findings] == [
        "Baseline and Follow-up are the same scan; check the folders that were given"
    ]


def test_a_brain_without_lesions_at_both_times_can_be_compared(brain, tmp_path):
    none = run_of(tmp_path / "none", brain, np.zeros(brain.data.shape, dtype=bool))
    found = compare(none, none, tmp_path / "out").changes
    assert (found.lesions, found.change_ml) == ([], 0)


def test_what_a_run_left_out_stays_out(brain, tmp_path):
    both = spot(brain, HERE, 11) | spot(brain, THERE, 11)
    folder = run_of(tmp_path / "run", brain, both)
    nifti.write(
        folder / "wmh.nii.gz", brain.with_data(spot(brain, HERE, 11).astype(np.uint8))
    )  # as with --exclude
    found = compare(folder, folder, tmp_path / "out").changes
    assert len(found.lesions) == 1


def test_two_brains_are_refused_and_nothing_is_written(times, tmp_path):
    other = make_phantom(np.random.default_rng(77), **SMALL | {"lesions": 0}).flair
    stranger = run_of(tmp_path / "other", other, spot(other, HERE, 11))
    with pytest.raises(LeukoError, match="of one person"):
        compare(times[0], stranger, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_runs_that_differ_in_method_are_warned_of_by_name(brain, times, tmp_path):
    mask = spot(brain, HERE, 14)
    other = run_of(tmp_path / "other", brain, mask, threshold=0.3, bias_correction=True)
    result = compare(times[0], other, tmp_path / "out")
    assert [found.text.split(" (")[0] for found in result.findings] == [
        "the two runs differ in threshold",
        "the two runs differ in bias correction",
    ]


def test_wmh_that_one_scan_does_not_show_is_not_compared(brain, tmp_path, caplog):
    both = spot(brain, HERE, 11) | spot(brain, THERE, 11)
    whole = run_of(tmp_path / "whole", brain, both)
    front = replace(
        brain,
        data=brain.data[:, 18:],
        affine=brain.affine @ [[1, 0, 0, 0], [0, 1, 0, 18], [0, 0, 1, 0], [0, 0, 0, 1]],
    )
    part = run_of(tmp_path / "part", front, resample_onto(_float(brain, both), front).data > 0.5)
    with caplog.at_level(logging.WARNING):
        found = compare(whole, part, tmp_path / "out").changes
    assert "outside the field of view of the other scan" in caplog.text
    assert [lesion.state for lesion in found.lesions] == ["stable"]


def _float(scan, mask):
    return scan.with_data(mask.astype(np.float32))


def test_a_flair_that_was_moved_is_asked_for_and_taken(times, tmp_path):
    flair = times[0] / "flair.nii.gz"
    elsewhere, wrong = tmp_path / "elsewhere.nii.gz", times[1] / "wmh.nii.gz"
    flair.rename(elsewhere)
    try:
        with pytest.raises(LeukoError, match="--flair"):
            compare(*times, tmp_path / "out")
        found = compare(*times, tmp_path / "out", flairs=[elsewhere])
        assert found.changes.counts["new"] == 1
        with pytest.raises(LeukoError, match="does not belong to any visit: its SHA-256"):
            compare(*times, tmp_path / "out", flairs=[elsewhere, wrong])
        nifti.write(flair, nifti.read(elsewhere).with_data(nifti.read(elsewhere).data + 1))
        with pytest.raises(LeukoError, match=r"not the FLAIR that .* was made from: its SHA-256"):
            compare(*times, tmp_path / "out")
    finally:
        elsewhere.rename(flair)


def test_runs_without_a_flair_in_a_file_are_refused(times, brain, tmp_path):
    folder = run_of(tmp_path / "run", brain, spot(brain, HERE, 11))
    record = RunRecord.read(folder / "run.json")
    flair = replace(record.inputs.flair, path=None)
    replace(record, inputs=Inputs(flair=flair)).write(folder / "run.json")
    with pytest.raises(LeukoError, match="made from a FLAIR in memory; save it as a file"):
        compare(times[0], folder, tmp_path / "out")


def test_folders_that_hold_neither_runs_nor_scans_are_refused(times, tmp_path):
    with pytest.raises(LeukoError, match=r"holds neither run\.json"):
        compare(times[0], tmp_path, tmp_path / "out")
    (tmp_path / "run.json").write_text('{"command": "train"}')
    with pytest.raises(LeukoError, match="not written by leuko segment"):
        compare(times[0], tmp_path, tmp_path / "out")


def test_files_of_others_are_not_replaced(times, tmp_path):
    (tmp_path / "changes.tsv").write_text("an expert's")
    with pytest.raises(LeukoError, match="not written by leuko compare"):
        compare(*times, tmp_path)
    with pytest.raises(LeukoError, match="holds the scans"):
        compare(*times, times[0])
    assert (tmp_path / "changes.tsv").read_text() == "an expert's"


def test_a_comparison_may_be_made_again(times, tmp_path):
    for _ in range(2):
        compare(*times, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FILES)


def test_pairs_of_scans_are_segmented_first(leuko, heads, tmp_path):
    home = heads / "head0"
    code, out, err = leuko("compare", home, home, "-o", tmp_path / "out")
    assert code == 0, err
    assert (tmp_path / "out" / "baseline" / "run.json").is_file()
    assert (tmp_path / "out" / "followup" / "wmh.nii.gz").is_file()
    assert "change      +0.00 mL" in out


def test_the_command_prints_the_change_its_floor_and_the_states(leuko, times, tmp_path):
    code, out, err = leuko("compare", *times, "-o", tmp_path / "out")
    assert code == 0, err
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert "beyond the noise floor of" in lines["change"]
    assert lines["new"].split()[1:3] == ["1", "lesion,"]
    assert lines["resolved"].endswith("0 lesions, +0.00 mL")
    assert lines["stable"].endswith(f"({WHY_STABLE})")
    assert WHY_STABLE in (tmp_path / "out" / "report.html").read_text()
    assert str(tmp_path / "out" / "changes.tsv") in out
    assert "done in" in err
