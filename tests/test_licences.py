"""Every shipped file that is not code is listed with its licence, and the licence texts ship."""

import re
import tomllib
from pathlib import Path, PurePosixPath

import pytest

import leuko

ROOT = Path(__file__).parents[1]
PACKAGE = Path(leuko.__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SCRIPTS = {"run", "try_image"}  # without a suffix, in .ci
PATH = re.compile(r"`([^`]+)`")


def rows(page, heading):
    """The cells of the rows of the tables below a heading."""
    section = (ROOT / page).read_text(encoding="utf-8").split(f"\n## {heading}\n")[1]
    lines = [line for line in section.split("\n## ")[0].splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


SHIPPED = [row for row in rows("THIRD_PARTY.md", "Shipped files") if row[0] != "files"]
TEXTS = sorted({PATH.fullmatch(row[-1])[1] for row in SHIPPED})


def files_without_code():
    """Paths in the repository of what is shipped, also in the source archive, beside code and
    pages."""
    names = ("docs", "tests", "experiments", "benchmarks", "contrib", "recipe", ".ci")
    folders = (PACKAGE, *(ROOT / name for name in names))
    found = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    found = [path for path in found if path.name not in SCRIPTS]
    code = (".py", ".pyc", ".md", ".sh", ".smk", ".nf", ".test", ".yml", ".yaml")
    return sorted(path.relative_to(ROOT).as_posix() for path in found if path.suffix not in code)


@pytest.mark.parametrize("path", files_without_code())
def test_a_shipped_file_is_listed_once_or_is_a_licence(path):
    patterns = [pattern for row in SHIPPED for pattern in PATH.findall(row[0])]
    listed = [pattern for pattern in patterns if PurePosixPath(path).match(pattern)]
    assert len(listed) == (0 if path in TEXTS and "iframe" not in path else 1), listed


def test_every_row_names_files_that_exist():
    for row in SHIPPED:
        for pattern in PATH.findall(row[0]):
            assert any(PurePosixPath(path).match(pattern) for path in files_without_code()), pattern


@pytest.mark.parametrize("text", TEXTS)
def test_a_licence_text_is_there_and_ships(text):
    assert (ROOT / text).stat().st_size > 500
    if not text.startswith("docs/"):  # which is only in the source archive
        assert any(PurePosixPath(text).match(pattern) for pattern in PROJECT["license-files"])


def test_the_list_itself_ships():
    assert "THIRD_PARTY.md" in PROJECT["license-files"]
    assert all(list(ROOT.glob(pattern)) for pattern in PROJECT["license-files"])


@pytest.mark.parametrize("row", SHIPPED, ids=lambda row: row[0].split("`")[1])
def test_a_licence_text_holds_the_licences_of_its_row(row):
    titles = {
        "Apache-2.0": "Apache",
        "MIT": "Permission is hereby granted, free of charge",
        "ISC": "ISC License",
        "BSD-2-Clause": "BSD 2-Clause",
        "BSD-3-Clause": "BSD 3-Clause",
        "CC BY 4.0": "CC BY 4.0",
        "permission notice of McGill University": "Permission to use, copy, modify",
    }
    text = (ROOT / PATH.fullmatch(row[-1])[1]).read_text(encoding="utf-8")
    licences = [name.removeprefix("of the libraries: ") for name in re.split("[;,] ", row[-2])]
    for licence in licences:
        assert titles[licence] in text, licence


def test_the_training_data_are_those_of_the_model_card():
    card = [row for row in rows("docs/model-card.md", "Training data") if len(row) == 3]
    credited = rows("THIRD_PARTY.md", "Training data of the bundled model")
    assert credited == [[source, licence] for source, _, licence in card]
