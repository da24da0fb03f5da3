"""A cohort's table, verdicts and page, of made-up results."""

import csv
import json
import math
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest

from leuko.cli.cohort import look_at
from leuko.cohort import gather, ratings, summary
from leuko.cohort.files import EDITED_FILE, EDITED_FOLDER
from leuko.cohort.job import Job, Wanted, is_done
from leuko.cohort.run import STRICT
from leuko.cohort.worker import Limits
from leuko.errors import LeukoError
from leuko.io import nifti
from leuko.io.files import sha256
from leuko.io.inputs import file_record
from leuko.io.outputs import KEY_SLICES_FILE, MASK_FILE, MNI_MASK_FILE, RECORD_FILE, REPORT_FILE
from leuko.io.record import (
    Edited,
    Excluded,
    Inputs,
    OutsideBrain,
    Quality,
    RunRecord,
    ScanRecord,
)
from leuko.model.card import Limits as LesionLimits
from leuko.report.html import SAVED
from leuko.volume import Volume
from reports import a_head, a_record, a_report, a_scan, assert_runs_only_its_own, finding

HOSTILE = "<script>document.title = 'run'</script>"


def rows(path, delimiter="\t"):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


class Words(HTMLParser):
    """The texts of a page, and the names of its cards in order."""

    def __init__(self, html):
        super().__init__()
        self.words, self.cards = "", []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        if tag == "li" and "data-name" in dict(attributes):
            self.cards.append(dict(attributes)["data-name"])

    def handle_data(self, words):
        self.words += words


def test_a_row_has_what_a_record_holds():
    flair, mask = a_head()
    record = a_record(flair, mask, excluded_ml=Excluded(volume_ml=3.0, wmh_ml=0.5))
    row = summary.row(record)
    assert list(row) == list(summary.COLUMNS)
    ml = flair.ml(mask)
    assert row["volume_ml"] == pytest.approx(ml)
    assert (row["volume_low_ml"], row["volume_high_ml"]) == (ml / 2, ml * 2)
    assert (row["expected_dice_low"], row["expected_dice_high"]) == (0.7, 0.9)
    assert row["left_ml"] == pytest.approx(ml / 4)
    lobes = [v for k, v in row.items() if k.endswith(("frontal_ml", "grey_ml"))]
    assert len(lobes) == 3
    sectors = [f"{name.replace(' ', '_')}_ml" for name in record.regions.bullseye.sectors]
    assert sum(row[name] for name in sectors) == pytest.approx(ml)
    assert row["csf_tissue_ml"] == 200.0
    assert (row["excluded_ml"], row["excluded_wmh_ml"]) == (3.0, 0.5)
    assert row["t1_moved_mm"] == 1.5
    assert row["t1_sha256"] == "ab" * 32


def test_what_a_record_does_not_have_is_not_known():
    flair, mask = a_head()
    missing = (
        "volume_interval_ml", "quality", "regions", "tissue_ml", "alignment", "intracranial_ml",
        "volume_percent_icv",
    )  # fmt: skip
    row = summary.row(a_record(flair, mask, **dict.fromkeys(missing)))
    unknown = {
        name for name, value in row.items() if isinstance(value, float) and math.isnan(value)
    }
    assert {"volume_low_ml", "expected_dice", "deep_ml", "t1_moved_mm"} <= unknown
    assert row["volume_ml"] == pytest.approx(flair.ml(mask))


def test_a_row_says_whether_the_result_may_be_used():
    flair, mask = a_head()
    plain = summary.row(a_record(flair, mask))
    assert (plain["do_not_use"], plain["warnings"], plain["finding_codes"]) == ("no", 0, "n/a")
    found = [
        finding("no FLAIR", "do not use", "little-white"), finding("cut"), finding("cut too"),
        finding("thick", "note", "slice-distance"),
    ]  # fmt: skip
    outside = OutsideBrain(lesions=2, wmh_ml=0.3)
    row = summary.row(a_record(flair, mask, findings=found, outside_brain=outside))
    assert (row["do_not_use"], row["warnings"]) == ("yes", 2)
    assert row["finding_codes"] == "little-white,cut-off,slice-distance"
    assert row["warning_codes"] == "little-white,cut-off"
    assert plain["warning_codes"] == "n/a"
    assert row["outside_brain_ml"] == 0.3


def test_results_not_to_be_used_come_first_and_count_in_no_median(cohort):
    useless = {"volume_ml": 900.0, "findings": [finding("no FLAIR", "do not use")]}
    out = cohort(b={"volume_ml": 2.0, "findings": [finding("cut off")]}, a={"volume_ml": 4.0},
                 z=useless)  # fmt: skip
    gather.write_batch(out)
    page = Words((out / "report.html").read_text())
    assert page.cards == ["z", "b", "a"]
    assert "range 2.00 to 4.00" in page.words
    assert "do not use: no FLAIR" in page.words
    assert "Not to be used1 of 3; not counted in the values" in page.words.replace(" 1 ", "1 ")


def test_rims_stand_in_the_table_and_on_the_page(cohort):
    out = cohort(a={"rims_ml": 1.0}, b={"rims_ml": 3.0})
    gather.write_batch(out)
    found = [(row["rims"], row["rims_ml"]) for row in rows(out / "wmh.tsv")]
    assert found == [("separate", "1"), ("separate", "3")]
    page = Words((out / "report.html").read_text()).words
    assert "2.00 mL median; not in the mask" in page.replace("mL  ", "mL ")
    assert "caps and rims 3.00 mL" in page
    assert "different conventions" not in page


def test_masks_of_different_conventions_are_warned_of(cohort):
    out = cohort(a={}, b={"rims": "include"}, c={"rims": "exclude", "rims_ml": None})
    gather.write_batch(out)
    page = Words((out / "report.html").read_text()).words
    assert "Different conventions for caps and rims" in page
    assert "differently (number of scans): not in the mask (2), in the mask (1)." in page


def test_a_cohort_of_useless_results_alone_has_a_page(cohort):
    out = cohort(a={"findings": [finding("no FLAIR", "do not use")]})
    gather.write_batch(out)
    assert "Not to be used" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("found", "code"),
    [
        ([], 0),
        ([finding("cut off"), finding("thick", "note")], 0),
        ([finding("no FLAIR", "do not use")], 3),
        ([finding("report.html could not be written", code="output")], 3),
    ],
)
def test_the_exit_code_of_a_cohort_tells_of_results_to_look_at(cohort, capsys, found, code):
    out = cohort(a={}, b={"findings": found})
    jobs = [
        Job(name, Path("F"), None, out / name, out, out, STRICT, Limits(1, 1, 1)) for name in "ab"
    ]
    assert look_at(jobs) == code
    said = capsys.readouterr().out
    assert ("b: " in said, "a: " in said) == (code == 3, False)


def test_every_column_is_described():
    about = summary.dictionary()
    assert list(about) == list(summary.COLUMNS)
    for name, said in about.items():
        assert len(said["Description"]) > 10
        unit = {"_ml": "mL", "_mm": "mm", "mm3": "mm^3"}.get(name[-3:])
        assert unit is None or said["Units"] == unit, name


def test_the_table_holds_one_row_a_subject_and_its_dictionary_every_column(cohort):
    out = cohort(a={}, b={"volume_ml": 7.0})
    gather.write_batch(out)
    found = rows(out / "wmh.tsv")
    assert [row["id"] for row in found] == ["a", "b"]
    assert found[1]["volume_ml"] == "7"
    assert found[0]["t1_sha256"] == found[0]["excluded_ml"] == "n/a"
    assert list(json.loads((out / "wmh.json").read_text())) == ["Description", *found[0]]


def test_a_failure_in_a_dataset_has_the_ids_of_its_scan(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "sub-02_ses-b_acq-3d_run-1.failed").write_text('no "FLAIR"\tof a head\n')
    gather.write_dataset(tmp_path)
    text = (tmp_path / "wmh.tsv").read_text()
    assert text.splitlines()[1].split("\t")[:6] == [
        "sub-02", "ses-b", "1", "acq-3d", "failed", "no 'FLAIR' of a head"
    ]  # fmt: skip
    assert [path.name for path in sorted((tmp_path / "phenotype").iterdir())] == [
        "wmh.json", "wmh.tsv"
    ]  # fmt: skip


def test_a_row_has_the_thickness_of_slices_and_the_verdict_of_those_who_agree():
    flair, mask = a_head()
    scan = replace(a_scan("F.nii.gz"), slice_mm=6.0)
    row = summary.row(a_record(flair, mask, inputs=Inputs(flair=scan)))
    assert row["slice_thickness_mm"] == 6
    for verdicts, told in ((["PASS", "PASS"], "PASS"), (["PASS", "FAIL"], "disagree")):
        judged = summary.judged(row, verdicts)
        assert (judged["verdict"], judged["raters"]) == (told, 2)
    unjudged = summary.judged(row, [])
    assert math.isnan(unjudged["verdict"])
    assert unjudged["raters"] == 0


def test_pandas_reads_the_table_as_it_is(cohort):
    pandas = pytest.importorskip("pandas")
    out = cohort(a={}, b={"volume_interval_ml": None})
    (out / "logs").mkdir()
    (out / "logs" / "c.failed").write_text("of a head with \"quotes'\n")
    gather.write_batch(out)
    table = pandas.read_csv(out / "wmh.tsv", sep="\t")
    assert list(table.status) == ["segmented", "segmented", "failed"]
    assert table.volume_ml.dtype == table.volume_low_ml.dtype == table.warnings.dtype == float
    assert list(table.volume_low_ml.isna()) == [False, True, True]
    assert table.reason[2] == "of a head with 'quotes'"
    assert '"' not in (out / "wmh.tsv").read_text()


def test_the_levels_of_a_column_are_all_that_it_holds(cohort):
    out = cohort(a={}, b={"rims": "include"})
    gather.write_batch(out)
    about = json.loads((out / "wmh.json").read_text())
    for row in rows(out / "wmh.tsv"):
        for name in ("status", "do_not_use", "mask", "rims", "rule"):
            assert row[name] in about[name]["Levels"]


def correct(folder, **changes):
    """A correction of the mask in a folder, as leuko view would leave it, and its numbers."""
    (folder / MASK_FILE).write_bytes(b"the automatic mask")
    corrected = folder / EDITED_FILE
    corrected.write_bytes(b"the corrected mask")
    edit = {"based_on_sha256": sha256(folder / MASK_FILE)}
    corrected.with_name("wmh_edited.json").write_text(json.dumps({"edits": [edit]}))
    record = RunRecord.read(folder / RECORD_FILE)
    mask = ScanRecord(path=str(corrected), sha256=sha256(corrected), series=None)
    edited = Edited(
        editor="A. Reader", saved="2026-11-29", automatic_ml=1.0, added_ml=0.5, removed_ml=0.0
    )
    inputs = replace(record.inputs, mask=mask)
    changes = {"inputs": inputs, "edited": edited, "volume_ml": 1.5, "rims": None} | changes
    return replace(record, command="measure", **changes), folder / EDITED_FOLDER / RECORD_FILE


def test_a_corrected_mask_counts_once_it_is_measured(cohort, caplog):
    out = cohort(a={}, b={})
    record, path = correct(out / "a")
    gather.write_batch(out)
    assert [row["mask"] for row in rows(out / "wmh.tsv")] == ["automatic", "automatic"]
    assert f"{out / 'a' / EDITED_FILE} is not used: its numbers are missing or old" in caplog.text
    caplog.clear()
    path.parent.mkdir()
    record.write(path)
    gather.write_batch(out)
    row = rows(out / "wmh.tsv")[0]
    assert (row["mask"], float(row["volume_ml"])) == ("corrected", 1.5)
    assert not caplog.text
    page = (out / "report.html").read_text()
    assert "corrected mask" in page
    assert "Different conventions" not in page


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda folder, _: (folder / EDITED_FILE).write_bytes(b"saved again"), "old"),
        (lambda folder, _: (folder / MASK_FILE).write_bytes(b"another"), "earlier automatic"),
        (
            lambda folder, record: replace(
                record, settings=replace(record.settings, rule="contiguity")
            ).write(folder / RECORD_FILE),
            "old",
        ),
        (
            lambda folder, record: replace(
                record, inputs=replace(record.inputs, flair=a_scan("other.nii.gz", "ab" * 32))
            ).write(folder / RECORD_FILE),
            "old",
        ),
        (lambda folder, _: (folder / "wmh_edited.json").write_text("{}"), "cannot be read"),
    ],
)
def test_a_correction_of_another_scan_mask_or_setting_is_not_used(cohort, caplog, change, why):
    out = cohort(a={})
    automatic = RunRecord.read(out / "a" / RECORD_FILE)
    record, path = correct(out / "a")
    path.parent.mkdir()
    record.write(path)
    change(out / "a", automatic)
    gather.write_batch(out)
    row = rows(out / "wmh.tsv")[0]
    assert (row["mask"], float(row["volume_ml"])) == (
        "automatic",
        pytest.approx(automatic.volume_ml, abs=1e-3),
    )
    assert why in caplog.text


def test_the_worst_come_first(cohort):
    def dice(value):
        return {"quality": Quality(predicted_dice=value, interval=(0, 1))}

    out = cohort(
        good=dice(0.9),
        warned=dice(0.95) | {"findings": [finding("cut off")]},
        bad=dice(0.2),
        unknown={"quality": None},
        worst=dice(0.9) | {"findings": [finding("cut off"), finding("motion")]},
    )
    gather.write_batch(out)
    page = Words((out / gather.PAGE).read_text())
    assert page.cards == ["worst", "warned", "unknown", "bad", "good"]
    assert "2of 5" in page.words.replace(" of", "of")


def test_failures_stand_on_the_page_and_in_the_table_with_their_reason(cohort):
    out = cohort(a={}, b={})
    (out / "logs").mkdir()
    (out / "logs" / "b.failed").write_text("b/FLAIR.nii.gz is all zeros\n")
    (out / "logs" / "b.log").touch()
    (out / "logs" / "c.failed").write_text(f"{HOSTILE}\n")
    gather.write_batch(out)
    found = rows(out / "wmh.tsv")
    assert [(row["id"], row["status"], row["reason"]) for row in found] == [
        ("a", "segmented", "n/a"),
        ("b", "failed", "b/FLAIR.nii.gz is all zeros"),
        ("c", "failed", HOSTILE),
    ]
    assert {*found[1].values()} == {"b", "failed", "b/FLAIR.nii.gz is all zeros", "n/a"}
    html = (out / gather.PAGE).read_text()
    assert_runs_only_its_own(html)
    assert 'href="logs/b.log"' in html
    assert "logs/c.log" not in html
    assert HOSTILE not in html
    assert HOSTILE in Words(html).words
    assert "Failed: 2" in html


def test_only_failures_make_a_page_too(tmp_path):
    out = tmp_path / "out"
    (out / "logs").mkdir(parents=True)
    (out / "logs" / "a.failed").write_text("all zeros\n")
    gather.write_batch(out)
    assert [row["reason"] for row in rows(out / "wmh.tsv")] == ["all zeros"]
    assert "all zeros" in (out / gather.PAGE).read_text()


def test_nothing_to_gather_is_said(tmp_path):
    with pytest.raises(LeukoError, match="holds no results; run the segmentation"):
        gather.write_batch(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"command": "train"}', "not written by leuko segment"),
        ('{"command": "segment"}', "older Leuko; segment its scans again"),
        ('{"command": "segment", "record_version": 1}', "damaged: .*; segment its scans again"),
        ("{", "not valid JSON"),
        ("[]", "no JSON object"),
    ],
)
def test_a_record_of_something_else_is_named_and_left_out(cohort, caplog, content, said):
    out = cohort(a={}, b={})
    (out / "a" / RECORD_FILE).write_text(content)
    gather.write_batch(out)
    assert [row["id"] for row in rows(out / "wmh.tsv")] == ["b"]
    assert re.search(rf"a result is not used: .*{RECORD_FILE}.*{said}", caplog.text)


def test_a_mask_without_its_record_is_named_and_left_out(cohort, caplog):
    out = cohort(a={}, b={})
    (out / "b" / RECORD_FILE).rename(out / "b" / "old.json")
    (out / "b" / "wmh.nii.gz").touch()
    gather.write_batch(out)
    assert [row["id"] for row in rows(out / "wmh.tsv")] == ["a"]
    assert "b/wmh.nii.gz is not used: its record run.json is missing" in caplog.text


def test_derivatives_in_another_place_or_without_a_record_are_named(cohort, tmp_path, caplog):
    record = cohort(a={}) / "a" / RECORD_FILE
    home = tmp_path / "ds" / "sub-01" / "anat"
    home.mkdir(parents=True)
    for name in ("sub-01", "sub-02", "x"):
        (home / f"{name}_space-FLAIR_label-WMH_stats.json").write_text(record.read_text())
    lone = "sub-01_run-2_space-FLAIR_label-WMH"
    (home / f"{lone}_mask.nii.gz").touch()
    gather.write_dataset(tmp_path / "ds")
    assert [row["participant_id"] for row in rows(tmp_path / "ds" / "wmh.tsv")] == ["sub-01"]
    told = [message.split(f"{home}/")[1] for message in caplog.messages]
    assert told == [
        f"{lone}_mask.nii.gz is not used: its record {lone}_stats.json is missing",
        "sub-02_space-FLAIR_label-WMH_stats.json is not used: its name requires another folder",
        "x_space-FLAIR_label-WMH_stats.json is not used: its name requires another folder",
    ]


def saved(out, name, *lines):
    """A file as a page saves it."""
    (out / ratings.FOLDER).mkdir(exist_ok=True)
    with (out / ratings.FOLDER / name).open("w", newline="") as file:
        table = csv.DictWriter(file, SAVED, restval="")
        table.writeheader()
        table.writerows(lines)


def verdict(number, word, **others):
    hashes = {"flair_sha256": f"{number + 100:064x}", "mask_sha256": f"{number:064x}"}
    return hashes | {"verdict": word, "rated": "2026-01-02"} | others


def test_verdicts_find_their_subjects_by_the_scan_and_are_one_csv(cohort, caplog):
    out = cohort(a={}, b={}, c={})
    saved(out, "qc_b.csv", verdict(1, "FAIL", subject="patient B", reasons="missed deep"))
    saved(
        out,
        "verdicts_me.csv",
        verdict(0, "PASS", subject="a", rater="me"),
        verdict(2, "flag", mask_sha256="ff" * 32, note="of, old"),
        verdict(9, "PASS", subject="elsewhere"),
    )
    saved(out, "qc_b (1).csv", verdict(1, "FAIL", subject="patient B", reasons="missed deep"))
    saved(out, "a.csv", verdict(0, "FAIL", rater="me", rated="2025-12-31"))  # a mind changed since
    (out / ratings.FOLDER / "other.csv").write_text("x,y\n1,2\n")
    (out / ratings.FOLDER / "latin.csv").write_bytes("verdict\né".encode("latin-1"))
    written = gather.write_batch(out)
    found = rows(written["verdicts"], ",")
    told = [(row["id"], row["verdict"], row["current"]) for row in found]
    assert told == [
        ("a", "PASS", "yes"), ("b", "FAIL", "yes"), ("c", "flag", "no"), ("n/a", "PASS", "no")
    ]  # fmt: skip
    assert found[2]["note"] == "of, old"
    assert "other.csv lacks the columns of verdicts" in caplog.text
    assert "latin.csv cannot be read" in caplog.text
    words = Words((out / gather.PAGE).read_text()).words
    assert "FAIL: missed deep (2026-01-02)" in words
    assert "PASS (me, 2026-01-02)" in words
    assert "flag (2026-01-02, on an older mask)" in words


def test_verdicts_that_are_taken_back_are_gone(cohort):
    out = cohort(a={})
    saved(out, "a.csv", verdict(0, "PASS"))
    assert "verdicts" in gather.write_batch(out)
    (out / ratings.FOLDER / "a.csv").unlink()
    gather.write_batch(out)
    assert not (out / ratings.TABLE).exists()


@pytest.fixture
def page(opened, cohort):
    out = cohort(
        **{f"sub-{k:02}": {"volume_ml": float(k), "findings": [finding("motion")] * (k == 3)}
           for k in range(12)}
    )  # fmt: skip
    (out / "logs").mkdir()
    (out / "logs" / "x.failed").write_text(f"{HOSTILE}\n")
    saved(out, "v.csv", verdict(5, "PASS"))
    gather.write_batch(out)
    return opened(out / gather.PAGE)


def names(page):
    shown = page.locator(".card:visible")
    return [shown.nth(k).get_attribute("data-name") for k in range(shown.count())]


@pytest.mark.browser
def test_subjects_are_found_chosen_and_ordered(page):
    assert names(page)[0] == "sub-03"
    assert page.locator("#count").inner_text() == "12 of 12"
    page.get_by_label("Find").fill("SUB-1")
    assert names(page) == ["sub-10", "sub-11"]
    page.get_by_label("Find").fill("")
    page.get_by_label("Order").select_option("volume")
    assert names(page) == [f"sub-{k:02}" for k in reversed(range(12))]
    page.get_by_label("Show").select_option("warned")
    assert names(page) == ["sub-03"]
    page.get_by_label("Show").select_option("open")
    assert "sub-05" not in names(page)
    assert len(names(page)) == 11
    assert page.title() == "White matter hyperintensities, a cohort"


@pytest.mark.browser
def test_verdicts_are_saved_as_one_csv_that_the_next_run_gathers(page, tmp_path):
    page.get_by_role("button", name="Save verdicts").click()
    assert page.locator("#saved").inner_text() == "Choose PASS, FAIL or flag first."
    for name, word in (("sub-07", "FAIL"), ("sub-03", "PASS")):
        page.get_by_role("group", name=f"Verdict on {name}").get_by_label(word).check()
    card = page.locator("[data-name='sub-07']")
    card.get_by_label("Reason").select_option("missed deep")
    card.get_by_label("Note").fill("=1+1, look")
    page.get_by_label("Rater").fill("A B")
    page.reload()  # nothing is lost
    page.get_by_label("Rater").fill("A B")
    assert page.locator("[data-name='sub-07']").get_by_label("Note").input_value() == "=1+1, look"
    with page.expect_download() as download:
        page.get_by_role("button", name="Save verdicts").click()
    assert download.value.suggested_filename == "verdicts_A_B.csv"
    out = tmp_path / "out"
    download.value.save_as(out / ratings.FOLDER / "mine.csv")
    found = rows(gather.write_batch(out)["verdicts"], ",")
    told = [(row["id"], row["verdict"], row["reasons"], row["current"]) for row in found]
    assert told == [
        ("sub-03", "PASS", "", "yes"),
        ("sub-05", "PASS", "", "yes"),
        ("sub-07", "FAIL", "missed deep", "yes"),
    ]
    assert found[2]["note"] == "'=1+1, look"
    assert found[2]["rater"] == "A B"


@pytest.mark.browser
def test_a_verdict_is_forgotten_with_the_mask_that_it_is_of(page, tmp_path):
    page.get_by_role("group", name="Verdict on sub-07").get_by_label("FAIL").check()
    record = tmp_path / "out" / "sub-07" / RECORD_FILE
    record.write_text(json.dumps(json.loads(record.read_text()) | {"mask_sha256": "ee" * 32}))
    gather.write_batch(tmp_path / "out")
    page.reload()
    assert page.locator(".card.done").count() == 0
    page.get_by_role("button", name="Save verdicts").click()
    assert page.locator("#saved").inner_text() == "Choose PASS, FAIL or flag first."


@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "width"), [("light", 1300), ("dark", 400)])
def test_anyone_can_use_the_page(opened, cohort, scheme, width):
    from axe_playwright_python.sync_playwright import Axe

    out = cohort(a={"findings": [finding("slices lie 8 mm apart")]}, b={})
    (out / "logs").mkdir()
    (out / "logs" / "x.failed").write_text("all zeros\n")
    saved(out, "v.csv", verdict(1, "PASS"))
    gather.write_batch(out)
    view = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
    page = opened(out / gather.PAGE, **view)
    page.get_by_role("group", name="Verdict on b").get_by_label("flag").check()
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.browser
def test_pictures_come_when_they_come_into_view(browser, cohort):
    out = cohort(**{f"s{k:03}": {} for k in range(300)})
    gather.write_batch(out)
    context = browser.new_context(offline=True, viewport={"width": 900, "height": 700})
    page, asked = context.new_page(), []
    page.on("request", lambda r: asked.append(r.url) if r.url.endswith(KEY_SLICES_FILE) else None)
    page.goto((out / gather.PAGE).as_uri())
    page.wait_for_timeout(500)
    assert 0 < len(asked) < 100
    before = len(asked)
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.wait_for_timeout(500)
    assert before < len(asked) < 250
    page.locator(".card h3 a").first.click()
    assert page.title() == "its report"
    context.close()


@pytest.mark.browser
def test_reports_lead_to_their_neighbours_in_the_order_of_the_page(opened, cohort, tmp_path):
    out = cohort(**{"a": {}, "b 1": {"findings": [finding("motion")]}, "c": {}, "d": {}})
    (tmp_path / "made").mkdir()
    for name in ("a", "b 1", "c"):  # d has no report
        (out / name / REPORT_FILE).write_text(a_report(tmp_path / "made", *a_head(), label=name))
    (out / "d" / REPORT_FILE).unlink()
    gather.write_batch(out)
    page = opened(out / gather.PAGE)
    page.locator("#order").select_option("name")
    page.locator(".card h3 a").first.click()
    page.wait_for_selector(".label")
    for link, label in (("next", "b 1"), ("next", "c"), ("previous", "b 1"), ("previous", "a")):
        page.locator(".neighbours a", has_text=link).click()
        page.wait_for_function(f"document.querySelector('.label')?.textContent === {label!r}")
    page.locator(".neighbours a", has_text="previous").click()  # there is none: back to the page
    page.wait_for_selector(".cards")
    assert page.locator("#order").input_value() == "name"


@pytest.mark.browser
@pytest.mark.parametrize("cohort", ["https://x.org/a.html", "javascript:alert(1)", "/etc/a", "a"])
def test_a_report_links_only_a_page_above_it(opened, tmp_path, cohort):
    report = tmp_path / "report.html"
    report.write_text(a_report(tmp_path, *a_head()))
    page = opened(report)
    page.goto(f"{report.as_uri()}#cohort={quote(cohort, safe='')}&name=a")
    page.reload()
    assert page.locator(".neighbours a:visible").count() == 0


@pytest.mark.parametrize(
    ("changes", "done"),
    [
        ({}, True),
        ({"findings": [finding("no FLAIR", "do not use")]}, True),
        ({"findings": [finding("wmh.dcm could not be written", code="output")]}, False),
    ],
)
def test_a_result_that_lacks_a_file_is_made_again(cohort, tmp_path, changes, done):
    flair = tmp_path / "FLAIR.nii.gz"
    flair.write_bytes(b"voxels")
    scan = ScanRecord(**asdict(file_record(flair)), series=None)
    settings = replace(a_record(*a_head()).settings, strict=True)
    out = cohort(a={"inputs": Inputs(flair=scan), "settings": settings} | changes)
    (out / "a" / MASK_FILE).touch()
    job = Job("a", flair, None, out / "a", out, out, STRICT, Limits(1, 1, 1))
    limits = LesionLimits(threshold=0.4, lesion_threshold=0.7, smallest_mm3=10.0)
    wanted = Wanted("cd" * 32, limits, STRICT)
    assert is_done(job, wanted) == done
    for other in (
        replace(wanted, weights_sha256="w"),
        replace(wanted, limits=replace(limits, threshold=0.5)),
        replace(wanted, settings=replace(STRICT, rims="include")),
    ):
        assert not is_done(job, other)
    (out / "a" / RECORD_FILE).write_text("{")
    assert not is_done(job, wanted)


def in_mni(folder, *voxels):
    """A mask in MNI152 space, on a small grid."""
    data = np.zeros((197, 233, 189), np.uint8)
    for voxel in voxels:
        data[voxel] = 1
    affine = np.eye(4)
    affine[:3, 3] = -98, -134, -72
    nifti.write(folder / MNI_MASK_FILE, nifti.in_mni(Volume(data, affine)))


def test_the_frequency_map_is_the_mean_of_the_masks_of_usable_results(cohort, caplog):
    useless = {"findings": [finding("no FLAIR", "do not use")]}
    out = cohort(a={}, b={}, c={}, d=useless)
    both, one = (90, 120, 88), (60, 100, 96)
    in_mni(out / "a", both, one)
    in_mni(out / "b", both)
    in_mni(out / "d", one)
    assert gather.write_batch(out)["frequency"] == out / "wmh_frequency.nii.gz"
    shares = nifti.read(out / "wmh_frequency.nii.gz").data
    assert (shares[both], shares[one], np.count_nonzero(shares)) == (1, 0.5, 2)
    about = json.loads((out / "wmh_frequency.json").read_text())
    assert (about["NumberOfScans"], about["Space"]) == (2, "MNI152NLin2009aSym")
    assert "shows 2 of 3 scans" in caplog.text
    assert "Where WMH lie" in (out / "report.html").read_text()
    assert (out / "wmh_frequency.jpg").read_bytes().startswith(b"\xff\xd8")

    for name in "ab":
        (out / name / MNI_MASK_FILE).unlink()
    assert "frequency" not in gather.write_batch(out)
    assert not list(out.glob("wmh_frequency*"))
    assert "Where WMH lie" not in (out / "report.html").read_text()


def test_masks_on_another_grid_leave_the_table_and_say_so(cohort, caplog):
    out = cohort(a={}, b={})
    in_mni(out / "a", (90, 120, 88))
    small = Volume(np.ones((4, 4, 4), np.uint8), np.diag([20.0, 20, 20, 1]))
    nifti.write(out / "b" / MNI_MASK_FILE, small)
    assert "frequency" not in gather.write_batch(out)
    assert "are not on the same voxel grid" in caplog.text
    assert not list(out.glob("wmh_frequency*"))
    assert [row["id"] for row in rows(out / "wmh.tsv")] == ["a", "b"]
