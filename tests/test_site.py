"""The documentation site: it builds without a warning, works offline, and fits a phone."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from test_docs import PAGES

ROOT = Path(__file__).parents[1]
REPOSITORY = "https://github.com/example/leuko"
DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}


def build(folder):
    process = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "REPO_URL": REPOSITORY},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site. Strict: a broken link, a missing anchor or a forgotten page is an error."""
    folder = tmp_path_factory.mktemp("site")
    build(folder)
    return folder


def test_every_document_is_a_page(site):
    pages = {path.stem for path in site.glob("*.html")}
    documents = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert documents < pages
    assert {"contributing", "changelog", "experiments", "benchmarks", "third-party"} < pages


def test_a_page_holds_what_it_includes(site):
    accuracy = (site / "accuracy.html").read_text(encoding="utf-8")
    card = (ROOT / "docs" / "model-card.md").read_text(encoding="utf-8")
    first = next(line for line in card.splitlines() if line.startswith("| ljubljana |"))
    for cell in first.strip("| ").split(" | "):
        assert f"<td>{cell}</td>" in accuracy
    assert "One predicted lesion" in (site / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_lists_are_written_so_that_the_site_shows_them_as_lists(page):
    """Code hosts also accept a list without an empty line before it, or indented by two spaces."""
    written = re.sub(
        r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    before = ""
    for line in written.splitlines():
        item = re.match(r"( *)(?:-|\d+\.) \S", line)
        if item and not item[1]:
            assert not before or re.match(r"(?:-|\d+\.) | {2}", before), line
        assert not item or len(item[1]) % 4 == 0, line
        before = line


def test_nothing_is_loaded_from_elsewhere(site):
    for path in site.glob("*.html"):
        page = path.read_text(encoding="utf-8")
        assert not re.search(r'\ssrc="?(?:https?:)?//', page), path
        assert not re.search(r'<link[^>]+href="?(?:https?:)?//', page), path
        # Of an element like this the theme asks the code host for stars and versions.
        assert 'data-md-component="source"' not in page, path
        assert page.count(f"href={REPOSITORY} ") + page.count(f'href="{REPOSITORY}"') == 1, path
    for path in (site / "assets" / "stylesheets").glob("*.css"):
        assert not re.search(r"(?:url\(|@import )[\"']?(?:https?:)?//", path.read_text()), path


@pytest.mark.browser
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_pages_fit_the_window_and_ask_for_nothing(site, opened, size):
    page = opened(site / "index.html", viewport=size)
    for path in sorted(site.glob("*.html")):
        if path.stem != "404":  # its links begin at the root of the host
            page.goto(path.as_uri())
            root = "document.documentElement"
            wide = page.evaluate(f"{root}.scrollWidth - {root}.clientWidth")
            assert wide == 0, path.stem


@pytest.mark.browser
def test_the_search_works_in_a_folder_without_a_server(site, opened):
    page = opened(site / "index.html", viewport=DESKTOP)
    page.locator(".md-search__input").fill("exclusion mask")
    results = page.locator(".md-search-result__link")
    results.first.wait_for()
    assert any("quickstart.html" in link.get_attribute("href") for link in results.all())
