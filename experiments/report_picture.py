"""Makes docs/report.jpg: the top of the report of `leuko demo` in a browser.

    python experiments/report_picture.py

Needs the extras `demo` and `dev`, and Chromium.
"""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import ViewportSize, sync_playwright

from leuko.segment import segment
from leuko.synthesis import demo

TARGET = Path(__file__).parents[1] / "docs" / "report.jpg"
VIEW = ViewportSize(width=1200, height=1420)


def main() -> None:
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        brain = demo.make_subject(Path(folder) / "brain")
        out = Path(folder) / "result"
        segment(brain / "FLAIR.nii.gz", brain / "T1.nii.gz").save(out)
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport=VIEW)
        page.goto((out / "report.html").as_uri())
        page.screenshot(path=TARGET, type="jpeg", quality=75)
        browser.close()


if __name__ == "__main__":
    main()
