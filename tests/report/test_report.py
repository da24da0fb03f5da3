"""The report as text: what it says, that it is whole, and that nothing in it runs or is loaded."""

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image, ImageColor

from leuko.io.record import FileRecord, Inputs
from leuko.model.calibration import interval_text
from leuko.report.answer import sentence
from leuko.report.html import Column, document, shown, table, text
from leuko.report.pictures import chosen_slices, mosaic
from leuko.report.plots import bullseye, volume_histogram
from leuko.report.viewer import RIM_KIND, encoded, fullest_slice, lesion_slices
from leuko.volume import Volume
from reports import (
    a_head,
    a_pane,
    a_record,
    a_report,
    a_scan,
    assert_runs_only_its_own,
    finding,
)


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text outside of scripts."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.words, self.hidden = [], [], False
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.hidden = tag in ("script", "style")

    def handle_data(self, data):
        if not self.hidden:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def head():
    return a_head()


def data_of(html):
    return json.loads(re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1])


def test_the_page_says_the_numbers_with_their_intervals(head, tmp_path):
    flair, mask = head
    said = Page(a_report(tmp_path, *head)).text
    ml = flair.ml(mask)
    assert f"{ml:.2f} mL 90 % interval {interval_text([ml / 2, ml * 2])}" in said
    assert "0.80 0.70 to 0.90" in said
    assert "Region rule voxel10" in said
    assert "Usable: no warnings." in said


def test_findings_stand_before_all_numbers_the_most_serious_first(head, tmp_path):
    found = [
        finding("no FLAIR", "do not use"), finding("cut off"), finding("motion"),
        finding("slices lie 8 mm apart", "note"),
    ]  # fmt: skip
    said = Page(a_report(tmp_path, *head, findings=found)).text
    order = (
        "Do not use this result", "Do not use: no FLAIR", "Warning: cut off", "Warning: motion",
        "Volume of WMH", "Note: slices lie 8 mm", "Numbers",
    )  # fmt: skip
    places = [said.index(words) for words in order]
    assert places == sorted(places)
    assert "Usable" not in said
    assert "Checked:" not in said


def test_the_all_clear_says_what_was_checked_and_notes_do_not_end_it(head, tmp_path):
    note = finding("slices lie 8 mm apart", "note")
    said = Page(a_report(tmp_path, *head, findings=[note])).text
    assert "Usable: no warnings." in said
    assert "Checked: volume of the brain, motion." in said
    said = Page(a_report(tmp_path, *head, checks=())).text
    assert "No automatic checks were done." in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "0.81 mL of white matter hyperintensities in 2 lesions, around the ventricles and in"),
        ({}, "the deep white matter; 0.058 % of the intracranial volume. Normal caps and rims of"),
        ({}, "rims of the ventricles, 1.5 mL, are not counted."),
        ({"regions": (7, 2, 1)}, "in 2 lesions, mostly around the ventricles;"),
        ({"regions": (0, 10, 0)}, "in 2 lesions, in the deep white matter;"),
        ({"regions": (0, 2, 8)}, "in 2 lesions, mostly in the brainstem and cerebellum;"),
        ({"volume_ml": 12.6, "rims": "include"},
         "13 mL of white matter hyperintensities, caps and rims in 2 lesions"),
        ({"lesions": 1, "volume_ml": 4.26}, "4.3 mL of white matter hyperintensities in 1 lesion,"),
        ({"lesions": 0, "rims_ml": 0.0}, "No white matter hyperintensities were found."),
        ({"regions": None, "volume_percent_icv": None}, "hyperintensities in 2 lesions. Normal"),
    ],
)  # fmt: skip
def test_the_sentence_says_what_was_found(head, changes, said):
    record = a_record(*head)
    if changes.get("regions"):
        names = ("periventricular_ml", "deep_ml", "infratentorial_ml")
        volumes = dict(zip(names, changes["regions"], strict=True))
        changes = changes | {"regions": replace(record.regions, **volumes)}
    record = replace(record, **{"volume_ml": 0.81, "volume_percent_icv": 0.0578} | changes)
    found = sentence(record).replace("\N{NO-BREAK SPACE}", " ")
    assert said in found


def test_slices_in_doubt_are_named_and_can_be_shown(head, tmp_path):
    html = a_report(tmp_path, *head, doubtful_slices=(3, 8))
    assert "The mask is least certain on slices 3 and 8 ." in Page(html).text
    assert 'data-show-slice="8"' in html
    html = a_report(tmp_path, *head, doubtful_slices=(3,), findings=[finding("motion")])
    assert "Check before use: look at slice 3 and read these warnings." in Page(html).text


def test_a_label_stands_in_the_title_the_header_the_verdict_and_on_paper(head, tmp_path):
    html = a_report(tmp_path, *head, label='sub-01 "A"; }')
    assert "<title>sub-01 &quot;A&quot;; }: White matter hyperintensities</title>" in html
    assert '<span class="label">sub-01 &quot;A&quot;; }</span>' in html
    assert 'name="subject" value="sub-01 &quot;A&quot;; }"' in html
    assert r'content: "sub\2d 01\20 \22 A\22 \3b \20 \7d "' in html


def test_probabilities_are_shown_if_they_are_known(head):
    flair, mask = head
    pane = a_pane(flair, mask)
    assert encoded([pane])[0]["probability"] is None
    probability = np.where(mask, 0.8, 0.0).astype(np.float32)
    (shown_,) = encoded([replace(pane, probability=probability)])
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown_["probability"][4]))), float)
    expected = pane.slices(255 * probability)[4]
    assert np.abs(image - expected).mean() < 4


def test_numbers_of_a_result_not_to_be_used_are_marked(head, tmp_path):
    marked = 'class="facts useless"'
    assert marked in a_report(tmp_path, *head, findings=[finding("no FLAIR", "do not use")])
    assert marked not in a_report(tmp_path, *head, findings=[finding("cut off")])


def test_nothing_is_loaded_from_anywhere(head, tmp_path):
    html = a_report(tmp_path, *head)
    for tag, attributes in Page(html).tags:
        for name in ("src", "href", "action", "srcset"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes[name])
    assert "url(" not in html
    assert "@import" not in html
    assert_runs_only_its_own(html)


EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>&amp;\"'"


def test_what_comes_from_outside_is_shown_and_not_run(head, tmp_path):
    harmless = len([t for t, _ in Page(a_report(tmp_path, *head)).tags if t in ("script", "img")])
    record = a_record(*head)
    html = a_report(
        tmp_path,
        *head,
        findings=[finding(EVIL)],
        inputs=Inputs(flair=a_scan(f"/{EVIL}")),
        model=replace(record.model, name=EVIL),
        settings=replace(record.settings, exclude=FileRecord(path=EVIL, sha256="")),
    )
    page = Page(html)
    assert len([t for t, _ in page.tags if t in ("script", "img")]) == harmless + 0
    assert page.text.count("<script>alert(1)</script>") >= 4
    assert data_of(html)["verdict"]["model"] == EVIL


def test_no_file_name_stands_outside_the_details(head, tmp_path):
    html = a_report(tmp_path, *head)
    assert html.count("anna") == 2
    assert html.index("<details>") < html.index("anna")


@pytest.mark.parametrize(
    "balls", [(), (((20, 30, 4), 0.5),), (((10, 36, 4), 60),)], ids=["none", "voxel", "half"]
)
def test_a_page_is_made_of_any_lesions(balls, tmp_path):
    flair, mask = a_head(balls)
    html = a_report(tmp_path, flair, mask)
    assert f"{flair.ml(mask):.2f} mL" in Page(html).text
    pane = data_of(html)["panes"][0]
    voxels = sum(sum(runs[1::4]) for runs in pane["runs"])
    assert voxels == mask.sum()
    assert ('class="sortable' in html) == bool(mask.any())


def test_a_page_is_made_of_one_slice(tmp_path):
    flair, mask = a_head((((20, 30, 0), 4),), shape=(60, 72, 1))
    assert len(data_of(a_report(tmp_path, flair, mask))["panes"][0]["runs"]) == 1


def test_a_record_without_regions_leaves_them_out(head, tmp_path):
    nothing = dict.fromkeys(
        ("regions", "quality", "volume_interval_ml", "intracranial_ml", "tissue_ml",
         "alignment")
    )  # fmt: skip
    said = Page(a_report(tmp_path, *head, **nothing)).text
    assert "Expected Dice" not in said
    assert "90 % interval" not in said
    assert "Volume of WMH" in said


def test_a_page_of_a_large_scan_stays_below_three_megabytes(tmp_path):
    rng = np.random.default_rng(0)
    shape = (182, 218, 182)
    noise = rng.normal(110, 12, shape).clip(0, 255)  # harder to compress than any scan
    mask = rng.random(shape) > 0.995  # as rugged as no lesions are
    flair = Volume(noise.astype(np.uint8), np.eye(4), name="FLAIR")
    html = a_report(tmp_path, flair, mask)
    assert len(html) < 3e6
    assert "The 500 largest of" in html


def test_runs_are_the_mask_as_it_is_looked_at(head):
    flair, mask = head
    pane = a_pane(flair, mask)
    (shown_,) = encoded([pane])
    for at, runs in enumerate(shown_["runs"]):
        drawn = np.zeros(shown_["width"] * shown_["height"], int)
        for start, length, number, _ in np.reshape(runs, (-1, 4)):
            drawn[start : start + length] = number
        expected = pane.slices(pane.ids)[at]
        np.testing.assert_array_equal(drawn.reshape(expected.shape), expected)


def test_the_right_of_the_patient_is_on_the_left():
    flair, mask = a_head((((10, 30, 4), 3),))  # x runs to the right: this one is left
    pane = a_pane(flair, mask)
    assert pane.marks == ("R", "L", "A", "P")
    seen = pane.slices(pane.kinds)[4] > 0
    assert np.argwhere(seen)[:, 1].mean() > seen.shape[1] / 2
    flair, mask = a_head((((30, 60, 4), 3),))  # y runs to the front
    seen = a_pane(flair, mask).slices(mask)[4]
    assert np.argwhere(seen)[:, 0].mean() < seen.shape[0] / 2


@pytest.mark.parametrize(
    ("spacing", "marks"), [((6, 2, 2), ("A", "P", "S", "I")), ((2, 6, 2), ("R", "L", "S", "I"))]
)
def test_slices_are_shown_in_the_plane_of_acquisition(spacing, marks):
    flair, mask = a_head(shape=(40, 44, 42), affine=np.diag([*spacing, 1.0]))
    pane = a_pane(flair, mask)
    assert pane.marks == marks
    assert len(encoded([pane])[0]["runs"]) == flair.data.shape[pane.across]
    assert pane.pixel_aspect == 1


def test_pictures_are_the_scan(head):
    flair, mask = head
    pane = a_pane(flair, mask, t1=flair.data // 2)
    (shown_,) = encoded([pane])
    for name, factor in (("FLAIR", 1), ("T1", 2)):
        picture = Image.open(io.BytesIO(base64.b64decode(shown_["images"][name][4])))
        assert picture.size == (shown_["width"], shown_["height"])
        off = factor * np.asarray(picture, float) - pane.slices(flair.data)[4]
        assert np.abs(off).mean() < 4


def test_the_page_opens_at_the_slice_with_most_lesion(head):
    flair, mask = head
    pane = a_pane(flair, mask)
    assert fullest_slice(pane) == mask.sum(axis=(0, 1)).argmax()
    none = a_pane(flair, np.zeros_like(mask))
    assert fullest_slice(none) == mask.shape[2] // 2


def test_each_lesion_leads_to_the_slice_that_holds_most_of_it(head):
    pane = a_pane(*head)
    found = lesion_slices(pane)
    for number in range(1, pane.ids.max() + 1):
        assert found[number] == (pane.ids == number).sum(axis=(0, 1)).argmax()


def test_a_table_escapes_and_rounds():
    html = table(
        [Column("name", "<Name>"), Column("ml", "mL", 2)],
        [{"name": "<b>", "ml": -0.001}, {"name": None, "ml": float("nan")}],
        caption="a & b",
    )
    assert text("<Name>") in html
    assert "<b>" not in html
    assert Page(html).text.endswith("<b> 0.00 n/a n/a")
    assert shown(None, 1) == "n/a"


BAND = (slice(25, 35), slice(20, 50), slice(4, 6))


def a_band(mask):
    """Rims beside the lesions of a head."""
    rims = np.zeros_like(mask)
    rims[BAND] = True
    return rims & ~mask


def test_rims_have_a_colour_of_their_own_and_are_no_lesion(head, tmp_path):
    rims = a_band(head[1])
    html = a_report(tmp_path, *head, band=rims)
    shown_ = data_of(html)
    kinds = [k for runs in shown_["panes"][0]["runs"] for k in np.reshape(runs, (-1, 4))]
    assert sum(k[1] for k in kinds if k[3] == RIM_KIND) == rims.sum()
    assert {k[2] for k in kinds if k[3] == RIM_KIND} == {0}
    assert shown_["kinds"][str(RIM_KIND)]["name"] == "caps and rims (not in the mask)"
    plain = data_of(a_report(tmp_path, *head))
    assert shown_["panes"][0]["start"] == plain["panes"][0]["start"]


@pytest.mark.parametrize(
    ("changes", "said", "unsaid"),
    [
        ({}, ["Volume of WMH 0.81", "Caps and rims 1.50 mL not in the mask",
              "WMH, caps and rims 2.31 mL together"], ["WMH and rims"]),
        ({"rims": "include", "wmh_ml": 0.1}, ["Volume of WMH and rims 0.81",
              "Caps and rims 1.50 mL in the mask", "WMH without caps and rims 0.10 mL"],
              ["(not in the mask)"]),
        ({"rims": "exclude", "rims_ml": None, "wmh_and_rims_ml": None},
              ["ventricles are not in the mask."], ["Caps and rims 1.50", "(not in the mask)"]),
        ({"rims": None, "wmh_ml": None, "rims_ml": None, "wmh_and_rims_ml": None},
              ["ventricles are not distinguished from WMH."],
              ["Caps and rims 1.50", "(not in the mask)"]),
    ],
    ids=["separate", "include", "exclude", "unknown"],
)  # fmt: skip
def test_the_page_says_whether_rims_are_counted_and_by_which_readers(
    head, tmp_path, changes, said, unsaid
):
    record = {"volume_ml": 0.81, "wmh_ml": 0.81, "rims_ml": 1.5, "wmh_and_rims_ml": 2.31}
    page = Page(a_report(tmp_path, *head, **record | changes)).text
    for words in (*said, "Fazekas grade 1 count them"):
        assert words in page
    for words in unsaid:
        assert words not in page


def outlined(picture, colour):
    """The pixels of a picture that have nearly a colour."""
    away = np.abs(np.asarray(picture, int) - ImageColor.getrgb(colour))
    return away.max(axis=2) < 100


def test_a_mosaic_outlines_what_has_a_colour(head):
    flair, mask = head
    pane = a_pane(flair, mask)
    options = {"title": "WMH", "marks": ("R", "L"), "most": 6}
    colours = {1: "#ff0000", 2: "#0000ff"}
    kinds = [np.where(kind > 0, 1, 0) for kind in pane.slices(pane.kinds)]
    slices = pane.slices(flair.data)
    assert outlined(mosaic(slices, kinds, colours, **options), "#ff0000").any()
    assert not outlined(mosaic(slices, kinds, {2: "#0000ff"}, **options), "#ff0000").any()
    none = [0 * kind for kind in kinds]
    assert not outlined(mosaic(slices, none, colours, **options), "#ff0000").any()


def test_an_outline_follows_the_edge_of_its_mask():
    image, mask = np.full((40, 50), 100), np.zeros((40, 50), bool)
    mask[10:30, 15:35] = True
    options = {"title": "", "marks": ("", "")}
    line = outlined(mosaic([image], [mask.astype(int)], {1: "#ff0000"}, **options), "#ff0000")
    rows, columns = np.nonzero(line)
    scale = line.shape[1] / 50
    edges = np.array([rows.min(), rows.max() + 1, columns.min(), columns.max() + 1]) / scale
    np.testing.assert_allclose(edges, [10, 30, 15, 35], atol=0.6)
    assert not line[
        round(12 * scale) : round(28 * scale), round(17 * scale) : round(33 * scale)
    ].any()


def test_a_mosaic_has_as_many_slices_as_asked_for(head):
    slices = a_pane(*head).slices(head[0].data)
    kinds = [0 * image for image in slices]
    rows = {
        most: mosaic(slices, kinds, {}, title="", marks=("R", "L"), most=most).size
        for most in (1, 4, 6, 7)
    }
    one, four, six, seven = (rows[most] for most in (1, 4, 6, 7))
    assert one[0] < four[0] < six[0] == seven[0]
    assert one[1] == four[1] == six[1] < seven[1]


def test_a_mosaic_shows_the_slices_with_lesions_first():
    kinds = [np.full((4, 4), k in (1, 2, 7), int) for k in range(9)]
    assert {1, 2, 7} < set(chosen_slices(kinds, 4))
    assert chosen_slices(kinds, 9) == list(range(9))


def test_slices_with_rims_alone_come_after_those_with_lesions():
    kinds = [np.zeros((40, 40), int) for _ in range(9)]
    for k, kind in ((1, 1), (2, RIM_KIND), (3, RIM_KIND), (7, 2)):
        kinds[k][20, 20] = kind
    kinds[1][25, 25] = RIM_KIND
    for most, expected in ((2, [1, 7]), (4, [1, 2, 3, 7])):
        assert chosen_slices(kinds, most, later=[RIM_KIND]) == expected


def counts_of(plot):
    return [row[0] for _, row in plot.rows]


@pytest.mark.parametrize("smallest_ml", [0.001, 0.1])
def test_a_histogram_counts_every_volume(smallest_ml):
    volumes = [0, 0.00001, 0.02, 0.03, 0.1, 1, 5, 1000, 5000]
    options = {"what": "volume, mL", "counted": "lesions", "smallest_ml": smallest_ml}
    plot = volume_histogram(volumes, **options)
    assert sum(counts_of(plot)) == len(volumes)
    assert plot.svg.count("<rect") == sum(count > 0 for count in counts_of(plot))
    assert f"≤ {smallest_ml:g}" in plot.svg
    for volume in (smallest_ml, 1, 10, 1000):
        one = volume_histogram([volume], **options)
        assert sum(counts_of(one)) == 1
        assert "≤" not in one.svg


@pytest.mark.parametrize("most", [1, 4, 5, 6, 11, 26, 60, 900])
def test_a_histogram_has_few_whole_ticks(most):
    plot = volume_histogram([1.0] * most, what="", counted="", smallest_ml=0.1)
    ticks = [int(n) for n in re.findall(r'text-anchor="end">(\d+)<', plot.svg)]
    assert 2 <= len(ticks) <= 6
    assert ticks[-2] < most <= ticks[-1]


def test_a_bullseye_is_darkest_where_most_is():
    ml = np.zeros((4, 9))
    ml[2, 5] = 3
    sectors = [f"{side} {lobe}" for lobe in "abcd" for side in ("left", "right")] + ["deep grey"]
    plot = bullseye(ml, ("innermost", "inner", "outer", "outermost"), sectors)
    fields = re.findall(r'<path [^>]*fill-opacity="([\d.]+)"', plot.svg)
    assert sorted(map(float, fields)) == [0] * 35 + [1]
    assert ">3.0<" in plot.svg
    assert plot.rows[2] == ("outer", [0, 0, 0, 0, 0, 3, 0, 0, 0])
    assert "nan" not in bullseye(0 * ml, ("a", "b", "c", "d"), sectors).svg


@pytest.mark.parametrize("name", ["", "report", "cohort"])
def test_every_page_runs_only_its_own_script(name):
    label = "</style><script>alert(1)</script>"
    html = document(title=label, subtitle=label, main=[], data={"a": label}, name=name, label=label)
    assert_runs_only_its_own(html)
