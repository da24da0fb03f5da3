"""Hooks of the documentation site: adds the documents outside docs/ and adapts the links to them,
and links the repository, whose address is in the variable REPO_URL, at the foot of each page.

In the repository, links are relative to the file that holds them, so that they work on a code host.
All pages of the site are in one folder.
"""

import os
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

# Path in the repository: page of the site.
PAGES = {
    "experiments/README.md": "experiments.md",
    "benchmarks/README.md": "benchmarks.md",
    "CONTRIBUTING.md": "contributing.md",
    "CODE_OF_CONDUCT.md": "code-of-conduct.md",
    "CHANGELOG.md": "changelog.md",
    "THIRD_PARTY.md": "third-party.md",
    "SECURITY.md": "reporting.md",
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the link to the repository."""
    if url := os.environ.get("REPO_URL"):
        link = {"icon": "fontawesome/brands/git-alt", "link": url, "name": "Repository"}
        config.extra["social"] = [link]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the documents outside docs/."""
    root = Path(config.config_file_path).parent
    for path, name in PAGES.items():
        files.append(File.generated(config, name, abs_src_path=str(root / path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Make links lead to the pages of the site."""
    paths = {name: path for path, name in PAGES.items()}
    folder = posixpath.dirname(paths.get(page.file.src_uri, f"docs/{page.file.src_uri}"))

    def on_site(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, link[1]))
        return f"]({PAGES.get(path, path.removeprefix('docs/'))}"

    return re.sub(r"\]\((?!https:)([^)#\s]+)", on_site, markdown)
