"""The report in a real browser: what a reader moves, moves; what is saved, is right."""

import csv
import io

import numpy as np
import pytest
from PIL import Image

from leuko.volume import Volume
from phantoms import make_phantom
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
    return page.locator(".stage img").first.get_attribute("src")


def test_slices_move_by_slider_wheel_keyboard_and_table(page):
    assert page.locator("#at").inner_text() == "6 / 9"
    first = source(page)
    page.locator("#slice").fill("3")
    assert page.locator("#at").inner_text() == "3 / 9"
    assert source(page) != first
    page.locator(".stage").first.hover()
    page.mouse.wheel(0, -100)
    page.wait_for_function("document.querySelector('#at').textContent === '4 / 9'")
    page.locator(".stage").first.focus()
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


def test_both_scans_are_side_by_side_or_one_is_large(page):
    assert page.locator(".view figcaption").all_inner_texts() == ["FLAIR", "T1"]
    both = page.locator(".stage").first.bounding_box()["width"]
    page.get_by_role("radio", name="T1").check()
    assert page.locator(".view figcaption").all_inner_texts() == ["T1"]
    assert "T1, slice 6 of 9" in page.locator(".stage img").first.get_attribute("alt")
    assert page.locator(".stage").first.bounding_box()["width"] > both


@pytest.mark.parametrize("size", [(1440, 900), (390, 844)])
def test_at_most_two_fifths_of_a_middle_slice_are_black(opened, tmp_path, size):
    rng, air = np.random.default_rng(3), ((30, 30), (10, 40), (0, 0))
    head = make_phantom(rng)
    grey = np.pad(255.0 * head.flair.data / np.quantile(head.flair.data, 0.999), air)
    grey[rng.random(grey.shape) < 1e-3] = 255  # stray noise, out to the borders of the image
    flair = Volume(grey.clip(0, 255).astype(np.uint8), head.flair.affine)
    mask = np.pad(head.labels.data > 0, air)
    viewport = {"width": size[0], "height": size[1]}
    page = opened(a_report(tmp_path, flair, mask), viewport=viewport)
    page.locator("#slice").fill("10")
    page.wait_for_function("document.querySelector('.stage img').complete")
    for stage in page.locator(".stage").all():
        seen = np.asarray(Image.open(io.BytesIO(stage.screenshot())).convert("L"))
        assert (seen < 16).mean() <= 0.4


def test_dragging_sets_window_and_level_and_reset_restores_them(page):
    before = filter_of(page)
    drag(page, 60, 40)
    assert filter_of(page) != before
    page.get_by_label("Opacity").fill("40")
    assert page.locator("canvas").first.evaluate("c => c.style.opacity") == "0.4"
    page.get_by_role("button", name="Reset").click()
    assert filter_of(page) == before
    assert page.locator("canvas").first.evaluate("c => c.style.opacity") == "1"


def test_zoom_keeps_the_place_under_the_pointer_and_shift_moves(page):
    assert place_of(page) == (0, 0, 1)
    box = page.locator(".stage").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 4)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -100)
    page.keyboard.up("Control")
    page.wait_for_function("state.zoom > 1")
    x, y, zoom = place_of(page)
    assert (x, y) == pytest.approx(
        ((1 - zoom) * box["width"] / 4, (1 - zoom) * box["height"] / 4), abs=1.5
    )
    page.keyboard.down("Shift")
    drag(page, -20, -30)
    page.keyboard.up("Shift")
    assert place_of(page)[:2] == pytest.approx((x - 20, y - 30), abs=1)
    page.keyboard.press("0")
    assert place_of(page) == (0, 0, 1)


def drag(page, x, y):
    box = page.locator(".stage").first.bounding_box()
    start = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(start[0] + x, start[1] + y, steps=4)
    page.mouse.up()


def filter_of(page):
    return page.locator(".stage img").first.evaluate("i => i.style.filter")


def place_of(page):
    """Where the picture is, in pixels, and its scale."""
    style = (
        "i => { const m = new DOMMatrix(getComputedStyle(i).transform); return [m.e, m.f, m.a]; }"
    )
    return tuple(page.locator(".stage img").first.evaluate(style))


def test_keys_lead_from_lesion_to_lesion_and_change_the_overlay(page):
    page.keyboard.press("n")
    assert page.locator("tr.chosen").get_attribute("data-id") == "1"
    page.keyboard.press("n")
    assert page.locator("tr.chosen").get_attribute("data-id") == "2"
    page.keyboard.press("p")
    assert page.locator("tr.chosen").get_attribute("data-id") == "1"
    page.keyboard.press("o")
    assert page.get_by_label("fill").is_checked()


def test_a_lesion_of_the_list_is_shown_in_the_middle(page):
    page.locator("tr[data-id='2']").click()
    x, y, zoom = place_of(page)
    box = page.locator(".stage").first.bounding_box()
    middle = (box["width"] / 2 - x) / zoom, (box["height"] / 2 - y) / zoom
    at = page.evaluate(
        """() => { const v = views[0], { ids } = v.overlay(v.number()); let n = 0, x = 0, y = 0;
        ids.forEach((id, k) => { if (id !== 2) return;
            n++; x += k % v.width; y += Math.floor(k / v.width); });
        return [(x / n + .5) / v.width, (y / n + .5) / v.height]; }"""
    )
    assert middle == pytest.approx((at[0] * box["width"], at[1] * box["height"]), abs=3)


def test_all_columns_are_shown_on_request_and_on_paper(page):
    header = page.get_by_role("columnheader", name="FLAIR contrast")
    assert not header.is_visible()
    page.get_by_label("all columns").check()
    assert header.is_visible()
    page.get_by_label("all columns").uncheck()
    page.emulate_media(media="print")
    assert header.is_visible()


def test_three_planes_of_an_isotropic_scan_meet_in_one_voxel(opened, tmp_path):
    shape = (60, 72, 54)
    flair, mask = a_head((((20, 30, 30), 5),), shape=shape, affine=np.diag([2.0, 2, 2, 1]))
    page = opened(a_report(tmp_path, flair, mask))
    page.get_by_label("three planes").check()
    assert page.locator(".view figcaption").all_inner_texts() == [
        "FLAIR", "FLAIR, coronal", "FLAIR, sagittal",
    ]  # fmt: skip
    page.locator("tr[data-id='1']").click()
    page.wait_for_function(
        "document.querySelectorAll('.stage img')[2].src.startsWith('data:image/png')"
    )
    under = """() => views.map((v) => { const [x, y] = v.cursor();
        return v.overlay(v.number()).ids[y * v.width + x]; })"""
    assert page.evaluate(under) == [1, 1, 1]
    grey = """async () => { const seen = [];
        for (const v of views) {
            const image = new Image(); image.src = await v.picture(v.number());
            await image.decode();
            const c = document.createElement("canvas"); [c.width, c.height] = [v.width, v.height];
            const g = c.getContext("2d"); g.drawImage(image, 0, 0, v.width, v.height);
            const [x, y] = v.cursor(); seen.push(g.getImageData(x, y, 1, 1).data[0]); }
        return seen; }"""
    assert page.evaluate(grey) == pytest.approx([180, 180, 180], abs=6)


def test_a_verdict_survives_a_reload(page):
    page.get_by_label("FAIL").check()
    page.get_by_label("missed deep").check()
    page.get_by_label("Note").fill("left")
    page.reload()
    assert page.get_by_label("FAIL").is_checked()
    assert page.get_by_label("missed deep").is_checked()
    assert page.get_by_label("Note").input_value() == "left"


def test_rims_are_outlined_in_their_colour_and_not_counted(opened, tmp_path):
    flair, mask = a_head()
    rims = np.zeros_like(mask)
    rims[28:34, 10:60, 4] = True
    page = opened(a_report(tmp_path, flair, mask, band=rims & ~mask))
    page.locator("#slice").fill("5")
    assert "2 lesions" in page.locator(".stage img").first.get_attribute("alt")
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
    page.locator(".stage").first.scroll_into_view_if_needed()
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
    page.locator(".stage").first.evaluate(
        """(stage) => { stage.setPointerCapture = () => {};
        for (const [type, x] of [["pointerdown", 100], ["pointermove", 140], ["pointerup", 140]])
            stage.dispatchEvent(new PointerEvent(type, { pointerId: 1, pointerType: "touch",
                clientX: x, clientY: 50, bubbles: true })); }"""
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
    assert HOSTILE in page.locator(".answer li").inner_text()
    assert page.title() == "White matter hyperintensities"


def test_html_that_got_into_the_page_does_nothing(browser, tmp_path):
    """The policy holds even if a text were not escaped."""
    evil = (
        "<script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\">"
        "<iframe src=https://example.org></iframe><style>h1 { display: none }</style>"
        "<form action=https://example.org><input name=a></form><base href=https://example.org>"
    )
    html = a_report(tmp_path, *a_head()).replace("<main>", f"<main>{evil}")
    (tmp_path / "evil.html").write_text(html, encoding="utf-8")
    page = browser.new_page()
    asked, refused = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: refused.append(message.text))
    page.goto((tmp_path / "evil.html").as_uri())
    assert page.title() == "White matter hyperintensities"
    assert page.locator("h1").is_visible()
    assert page.evaluate("document.baseURI").startswith("file:")
    assert painted(page) > 0  # its own script runs
    page.evaluate("document.forms[0].submit()")
    page.wait_for_timeout(200)
    assert len([text for text in refused if "Content Security Policy" in text]) == 7
    assert not [address for address in asked if address.startswith("http")]
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_an_accessibility_checker_finds_nothing(opened, tmp_path, scheme, width):
    from axe_playwright_python.sync_playwright import Axe

    view = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
    found = [finding("no FLAIR", "do not use"), finding("motion"), finding("8 mm", "note")]
    page = opened(a_report(tmp_path, *a_head(), findings=found), **view)
    page.locator("section.details summary").click()
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_on_paper_the_controls_give_way_to_pictures(page):
    assert not page.locator(".sheet").is_visible()
    page.emulate_media(media="print")
    assert page.locator(".sheet img").is_visible()
    assert not page.locator(".controls").is_visible()
    assert not page.locator("section.details").is_visible()


@pytest.mark.parametrize("balls", [(), (((10, 36, 4), 60),)], ids=["none", "half"])
def test_no_lesion_and_half_the_brain_are_shown(opened, tmp_path, balls):
    page = opened(a_report(tmp_path, *a_head(balls)))
    page.get_by_label("fill").check()
    assert (painted(page) > 0) == bool(balls)
