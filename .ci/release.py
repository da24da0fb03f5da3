"""Prepares a checkout for a release: python .ci/release.py TAG REPOSITORY_URL

Checks that the tag is the version of the package and that CHANGELOG.md gives its date. Then makes
the links of README.md absolute and adds the project's addresses to pyproject.toml, since a package
index shows the page outside the repository. Prints the notes of the release.
"""

import re
import sys
import tomllib
from pathlib import Path
from posixpath import join, normpath

ROOT = Path(__file__).parents[1]


def prepare(root: Path, tag: str, url: str) -> str:
    """Change README.md and pyproject.toml in `root`; returns the notes. Exits with the reason if
    the tag cannot be released."""
    project, page, changes = (
        root / name for name in ("pyproject.toml", "README.md", "CHANGELOG.md")
    )
    written = project.read_text(encoding="utf-8")
    version = tomllib.loads(written)["project"]["version"]
    if tag != f"v{version}":
        sys.exit(f"the tag is {tag}, expected v{version}, the version in pyproject.toml")
    notes = notes_of(changes.read_text(encoding="utf-8"), version)
    page.write_text(
        with_absolute_links(page.read_text(encoding="utf-8"), tag, url), encoding="utf-8"
    )
    urls = {
        "Homepage": url,
        "Issues": f"{url}/issues",
        "Changelog": f"{url}/blob/{tag}/CHANGELOG.md",
    }
    lines = "".join(f'{name} = "{address}"\n' for name, address in urls.items())
    project.write_text(f"{written}\n[project.urls]\n{lines}", encoding="utf-8")
    return notes


def notes_of(changes: str, version: str) -> str:
    """The section of a version in CHANGELOG.md."""
    match = re.search(
        rf"^## {re.escape(version)}, (.*?)\n(.*?)(?=^## |\Z)", changes, re.MULTILINE | re.DOTALL
    )
    if not match or not re.fullmatch(r"\d{4}-\d\d-\d\d", match[1]):
        sys.exit(f'CHANGELOG.md has no section "## {version}, YYYY-MM-DD"; add it or its date')
    return match[2].strip() + "\n"


def with_absolute_links(page: str, tag: str, url: str, folder: str = "") -> str:
    """A page in Markdown, from a folder of the repository, whose relative links and images lead
    into the repository at a tag."""

    def absolute(match: re.Match[str]) -> str:
        kind = "raw" if match[1].startswith("!") else "blob"
        return f"{match[1]}({url}/{kind}/{tag}/{normpath(join(folder, match[2]))})"

    return re.sub(r"(!?\[[^\]]*\])\((?!https?://|#)([^)]+)\)", absolute, page)


if __name__ == "__main__":
    print(prepare(ROOT, *sys.argv[1:3]), end="")
