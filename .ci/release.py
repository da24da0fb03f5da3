"""Prepares a checkout for a release, or the pages of the documentation site:

python .ci/release.py TAG REPOSITORY_URL [DOCUMENTATION_URL]
python .ci/release.py pages

The first checks that the tag is the version of the package, that CHANGELOG.md gives its date, and
that CITATION.cff gives the same date and the address of the repository. Then it makes README.md
what a package index shows (absolute links, no clone) and adds the project's addresses to
pyproject.toml. It prints the notes of the release.

The second makes the pages of the site tell how to install a release instead of a clone. It changes
nothing before the first release.
"""

import re
import sys
import tomllib
from pathlib import Path
from posixpath import join, normpath

ROOT = Path(__file__).parents[1]
# They are about a clone in any case: benchmarks are only in the repository.
FOR_CONTRIBUTORS = {"AGENTS.md", "CONTRIBUTING.md", "docs/extending.md", "benchmarks/README.md"}
DATED = r"\d{4}-\d\d-\d\d"


def prepare(root: Path, tag: str, url: str, documentation: str = "") -> str:
    """Change README.md and pyproject.toml in `root`; returns the notes. Exits with the reason if
    the tag cannot be released."""
    project, page, changes, citation = (
        root / name for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "CITATION.cff")
    )
    written = project.read_text(encoding="utf-8")
    version = tomllib.loads(written)["project"]["version"]
    if tag != f"v{version}":
        sys.exit(f"the tag is {tag}, expected v{version}, the version in pyproject.toml")
    date, notes = notes_of(changes.read_text(encoding="utf-8"), version)
    require_citation(citation.read_text(encoding="utf-8"), date, url)
    readme = released(page.read_text(encoding="utf-8"))
    page.write_text(with_absolute_links(readme, tag, url), encoding="utf-8")
    urls = {
        "Homepage": url,
        "Documentation": documentation,
        "Issues": f"{url}/issues",
        "Changelog": f"{url}/blob/{tag}/CHANGELOG.md",
    }
    lines = "".join(f'{name} = "{address}"\n' for name, address in urls.items() if address)
    project.write_text(f"{written}\n[project.urls]\n{lines}", encoding="utf-8")
    return notes


def notes_of(changes: str, version: str) -> tuple[str, str]:
    """The date and the section of a version in CHANGELOG.md."""
    match = re.search(
        rf"^## {re.escape(version)}, (.*?)\n(.*?)(?=^## |\Z)", changes, re.MULTILINE | re.DOTALL
    )
    if not match or not re.fullmatch(DATED, match[1]):
        sys.exit(f'CHANGELOG.md has no section "## {version}, YYYY-MM-DD"; add it or its date')
    return match[1], match[2].strip() + "\n"


def require_citation(citation: str, date: str, url: str) -> None:
    """Exits if CITATION.cff does not give the date and the address of a release."""
    lines = citation.splitlines()
    for line in (f"date-released: {date}", f"repository-code: {url}"):
        if line not in lines:
            sys.exit(f'CITATION.cff has no line "{line}"; add or correct it')


def released(page: str) -> str:
    """A page in Markdown that tells how to install the released package instead of a clone. Parts
    between <!-- clone --> and <!-- /clone --> are left out."""
    page = re.sub(r"<!-- clone -->.*?<!-- /clone -->\n*", "", page, flags=re.DOTALL)
    page = page.replace("-c constraints.txt ", "")
    page = re.sub(r'pip install -e "\.(\[[\w,]+\])"', r'pip install "leuko\1"', page)
    return re.sub(r"pip install -e \.(?!\[)", "pip install leuko", page).rstrip() + "\n"


def pages(root: Path) -> list[Path]:
    """The pages that the site shows or includes and that tell users how to install Leuko."""
    homes = (root, root / "docs", root / "experiments", root / "benchmarks")
    found = sorted(path for home in homes for path in home.glob("*.md"))
    return [path for path in found if path.relative_to(root).as_posix() not in FOR_CONTRIBUTORS]


def release_pages(root: Path) -> None:
    """Change the pages in `root`, if CHANGELOG.md has a released version."""
    changes = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    if re.search(rf"^## \S+, {DATED}$", changes, re.MULTILINE):
        for path in pages(root):
            path.write_text(released(path.read_text(encoding="utf-8")), encoding="utf-8")


def with_absolute_links(page: str, tag: str, url: str, folder: str = "") -> str:
    """A page in Markdown, from a folder of the repository, whose relative links and images lead
    into the repository at a tag."""

    def absolute(match: re.Match[str]) -> str:
        kind = "raw" if match[1].startswith("!") else "blob"
        return f"{match[1]}({url}/{kind}/{tag}/{normpath(join(folder, match[2]))})"

    return re.sub(r"(!?\[[^\]]*\])\((?!https?://|#)([^)]+)\)", absolute, page)


def without_relative_links(page: str) -> str:
    """A page in Markdown with the texts of its relative links in their place."""
    return re.sub(r"(?<!!)\[([^\]]*)\]\((?!https?://|#)[^)]+\)", r"\1", page)


if __name__ == "__main__":
    if sys.argv[1:] == ["pages"]:
        release_pages(ROOT)
    else:
        print(prepare(ROOT, *sys.argv[1:4]), end="")
