"""The report in a real browser: what a reader moves, moves; what is saved, is right."""

import csv

import numpy as np
import pytest

from reports import a_head, a_report, finding

pytestmark = pytest.mark.browser
HOSTILE = "<script>document.title = 'run'</script>"


@pytest.fixture
def page(opened, tmp_path):
    return opened(a_report(tmp_path, *a_head(), findings=[finding(HOSTILE)]))


def painted(page):
    """How many canvas pixels have colour."""
    return page.evaluate(
        """() => { const c = document.querySelector("canvas");
        const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
        let n = 0; for (let k = 3; k < d.length; k += 4) n += d[k] > 0; return n; }"""
    )


def source(page):
    return page.locator(".stage img").get_attribute("src")


def test_slices_move_by_slider_wheel_keyboard_and_table(page):
    assert page.locator("#at").inner_text() == "6 / 9"
    first = source(page)
    page.locator("#slice").fill("3")
    assert page.locator("#at").inner_text() == "3 / 9"
    assert source(page) != first
    page.locator(".stage").hover()
    page.mouse.wheel(0, -100)
    page.wait_for_function("document.querySelector('#at').textContent === '4 / 9'")
    page.locator(".stage").focus()
    page.keyboard.press("ArrowUp")
    assert page.locator("#at").inner_text() == "5 / 9"
    page.keyboard.press("End")
    assert page.locator("#at").inner_text() == "9 / 9"
    page.locator("tr[data-id='2'] .go").click()
    assert page.locator("#at").inner_text() == "6 / 9"
    assert "chosen" in page.locator("tr[data-id='2']").get_attribute("class")


def test_the_overlay_is_outlined_filled_or_gone(page):
    outlined = painted(page)
    page.get_by_label("fill").check()
    filled = painted(page)
    assert filled > outlined > 0
    page.get_by_label("none").check()
    assert painted(page) == 0
    page.get_by_label("fill").check()
    page.locator("#slice").fill("1")
    assert painted(page) == 0


def test_scan_opacity_brightness_and_contrast_change_what_is_seen(page):
    flair = source(page)
    page.get_by_role("radio", name="T1").check()
    assert "T1, slice 6 of 9" in page.locator(".stage img").get_attribute("alt")
    page.get_by_role("radio", name="FLAIR").check()
    assert source(page) == flair
    page.get_by_label("Opacity").fill("40")
    assert page.locator("canvas").evaluate("c => c.style.opacity") == "0.4"
    page.get_by_label("Brightness").fill("200")
    assert "brightness(200%)" in page.locator(".stage img").evaluate("i => i.style.filter")
    page.get_by_role("button", name="Reset").click()
    assert "brightness(130%)" in page.locator(".stage img").evaluate("i => i.style.filter")


def test_rims_are_outlined_in_their_colour_and_not_counted(opened, tmp_path):
    flair, mask = a_head()
    rims = np.zeros_like(mask)
    rims[28:34, 10:60, 4] = True
    page = opened(a_report(tmp_path, flair, mask, band=rims & ~mask))
    page.locator("#slice").fill("5")
    assert "2 lesions" in page.locator(".stage img").get_attribute("alt")
    pink = """() => {
        const canvas = document.querySelector("canvas");
        const all = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        let count = 0;
        for (let k = 0; k < all.length; k += 4)
            count += all[k] === 0xcc && all[k + 1] === 0x79 && all[k + 2] === 0xa7;
        return count;
    }"""
    outlined = page.evaluate(pink)
    assert outlined > 0
    page.locator('input[value="fill"]').check()
    assert page.evaluate(pink) > 1.5 * outlined  # a contour is not the area


def test_a_click_on_a_lesion_finds_its_row(page):
    page.get_by_label("fill").check()
    page.locator(".stage").scroll_into_view_if_needed()
    x, y = page.evaluate(
        """() => { const c = document.querySelector("canvas"), b = c.getBoundingClientRect();
        const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
        const k = d.findIndex((v, n) => n % 4 === 3 && v) >> 2;
        return [b.left + (k % c.width + 2) * b.width / c.width,
                b.top + (Math.floor(k / c.width) + 2) * b.height / c.height]; }"""
    )
    page.mouse.click(x, y)
    assert page.locator("tr.chosen").count() == 1


def test_a_swipe_moves_through_the_slices(opened, tmp_path):
    phone = {"has_touch": True, "viewport": {"width": 390, "height": 800}}
    page = opened(a_report(tmp_path, *a_head()), **phone)
    page.locator("#slice").fill("3")
    page.locator(".stage").evaluate(
        """(stage) => { for (const [type, x] of [["touchstart", 100], ["touchmove", 140]]) {
        const touch = new Touch({ identifier: 1, target: stage, clientX: x, clientY: 50 });
        stage.dispatchEvent(new TouchEvent(type, { touches: [touch], bubbles: true })); } }"""
    )
    assert page.locator("#at").inner_text() == "6 / 9"


def test_the_table_is_sorted_by_its_headers(page):
    header = page.get_by_role("columnheader", name="Volume, mL")
    column = page.locator(".lesions tbody td:nth-child(2)")
    header.get_by_role("button").click()
    falling = [float(v) for v in column.all_inner_texts()]
    assert header.get_attribute("aria-sort") == "descending"
    header.get_by_role("button").click()
    assert [float(v) for v in column.all_inner_texts()] == falling[::-1]
    assert falling == sorted(falling, reverse=True)


def test_a_verdict_is_saved_as_a_row(page, tmp_path):
    page.get_by_role("button", name="Save CSV row").click()
    assert "Choose" in page.locator("#saved").inner_text()
    page.get_by_label("FAIL").check()
    page.get_by_label("missed deep").check()
    page.get_by_label("over-estimation").check()
    page.get_by_label("Subject").fill("sub-01")
    page.get_by_label("Note").fill('=HYPERLINK("x"), and a comma')
    with page.expect_download() as download:
        page.get_by_role("button", name="Save CSV row").click()
    assert download.value.suggested_filename == "qc_sub-01.csv"
    download.value.save_as(tmp_path / "qc.csv")
    with (tmp_path / "qc.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["subject"], row["verdict"]) == ("sub-01", "FAIL")
    assert row["reasons"] == "missed deep; over-estimation"
    assert row["note"] == '\'=HYPERLINK("x"), and a comma'
    assert float(row["volume_ml"]) > 0
    assert row["model"] == "leuko-base"


def test_hostile_text_is_shown_and_not_run(page):
    assert page.locator(".alert li").inner_text() == HOSTILE
    assert page.title() == "White matter hyperintensities"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_an_accessibility_checker_finds_nothing(opened, tmp_path, scheme, width):
    from axe_playwright_python.sync_playwright import Axe

    view = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
    found = [finding("no FLAIR", "do not use"), finding("motion"), finding("8 mm", "note")]
    page = opened(a_report(tmp_path, *a_head(), findings=found), **view)
    page.locator("details summary").click()
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_on_paper_the_controls_give_way_to_pictures(page):
    assert not page.locator(".sheet").is_visible()
    page.emulate_media(media="print")
    assert page.locator(".sheet img").is_visible()
    assert not page.locator(".controls").is_visible()
    assert not page.locator("details").is_visible()


@pytest.mark.parametrize("balls", [(), (((10, 36, 4), 60),)], ids=["none", "half"])
def test_no_lesion_and_half_the_brain_are_shown(opened, tmp_path, balls):
    page = opened(a_report(tmp_path, *a_head(balls)))
    page.get_by_label("fill").check()
    assert (painted(page) > 0) == bool(balls)
