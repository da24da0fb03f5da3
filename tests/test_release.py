"""What a release consists of: version, packages, notes, the recipe for conda-forge."""

import json
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import yaml

from leuko.model import weights
from leuko.model.card import load_card

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RELEASE = runpy.run_path(str(ROOT / ".ci" / "release.py"))
MODEL = runpy.run_path(str(ROOT / ".ci" / "model_asset.py"))
LARGEST_WHEEL = 15e6  # bytes; most of it is the model
# Names in conda-forge, where they differ.
CONDA = {"diplib": "diplib-python", "SimpleITK": "simpleitk"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("NOT TESTED: the files of the repository are only known to git")
    listed = subprocess.run(
        [git, "ls-files", "src"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    names = set(zipfile.ZipFile(wheel).namelist())
    info = f"leuko-{PROJECT['version']}.dist-info/"
    assert {n for n in names if not n.startswith(info)} == {n.removeprefix("src/") for n in listed}


def test_the_wheel_is_small(wheel):
    assert wheel.stat().st_size <= LARGEST_WHEEL


def test_the_wheel_says_what_it_is(wheel):
    content = zipfile.ZipFile(wheel)
    info = f"leuko-{PROJECT['version']}.dist-info"
    about = message_from_bytes(content.read(f"{info}/METADATA"))
    assert about["Version"] == PROJECT["version"]
    assert about["License-Expression"] == "Apache-2.0"
    assert set(about.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])
    assert f"{info}/licenses/LICENSE" in content.namelist()


def test_the_version_is_written_in_one_place_and_repeated_without_error():
    version = PROJECT["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"leuko:(\d[\w.]*\d)", (ROOT / "docs/containers.md").read_text()) == (
        [version] * (ROOT / "docs/containers.md").read_text().count("leuko:0")
    )
    first = re.search(r"^## (\S+), (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first[1] == version
    assert re.fullmatch(r"unreleased|\d{4}-\d\d-\d\d", first[2])
    recipe = yaml.safe_load((ROOT / "recipe/recipe.yaml").read_text(encoding="utf-8"))
    assert recipe["context"]["version"] == version


def test_the_recipe_needs_what_the_package_needs():
    recipe = yaml.safe_load((ROOT / "recipe/recipe.yaml").read_text(encoding="utf-8"))
    needed = {f"python {PROJECT['requires-python']}"}
    for line in PROJECT["dependencies"]:
        name, limit = re.fullmatch(r"([\w-]+)(.*)", line).groups()
        needed.add(f"{CONDA.get(name, name)} {limit}")
    assert set(recipe["requirements"]["run"]) == needed
    assert f"leuko = {PROJECT['scripts']['leuko']}" in recipe["build"]["python"]["entry_points"]


@pytest.fixture
def checkout(tmp_path):
    for name in ("README.md", "pyproject.toml", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    changes = (tmp_path / "CHANGELOG.md").read_text(encoding="utf-8")
    (tmp_path / "CHANGELOG.md").write_text(
        changes.replace(", unreleased", ", 2027-01-31"), encoding="utf-8"
    )
    return tmp_path


def test_a_release_has_notes_addresses_and_absolute_links(checkout):
    url = "https://example.org/leuko"
    tag = f"v{PROJECT['version']}"
    notes = RELEASE["prepare"](checkout, tag, url)
    assert notes.startswith("The first release.")
    assert "## " not in re.sub("^###.*", "", notes, flags=re.MULTILINE)
    page = (checkout / "README.md").read_text(encoding="utf-8")
    assert f"]({url}/raw/{tag}/docs/method.png)" in page
    assert f"]({url}/blob/{tag}/docs/quickstart.md)" in page
    for link in re.findall(r"\]\(([^)]+)\)", page):
        assert link.startswith("https://")
    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["urls"]["Homepage"] == url
    assert project["dependencies"] == PROJECT["dependencies"]


def test_another_tag_is_not_released(checkout):
    with pytest.raises(SystemExit, match=r"the tag is v9, expected v\d"):
        RELEASE["prepare"](checkout, "v9", "https://example.org")


def test_a_version_without_a_date_is_not_released(checkout):
    shutil.copy(ROOT / "CHANGELOG.md", checkout)
    changes = checkout / "CHANGELOG.md"
    changes.write_text(
        re.sub("^(## [^,]+), .*$", r"\1, unreleased", changes.read_text(), flags=re.MULTILINE)
    )
    with pytest.raises(SystemExit, match="YYYY-MM-DD"):
        RELEASE["prepare"](checkout, f"v{PROJECT['version']}", "https://example.org")


@pytest.fixture(scope="module")
def asset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("asset")
    MODEL["make"](folder, "v1.2", "https://example.org/leuko")
    return folder


def test_the_model_is_an_archive_that_models_pull_takes(asset, tmp_path, monkeypatch):
    digest, name = (asset / "leuko-base.zip.sha256").read_text().split()
    monkeypatch.setenv("LEUKO_CACHE", str(tmp_path))
    monkeypatch.setattr(weights, "BUNDLED", tmp_path / "none")
    folder = weights.pull(str(asset / name), sha256_expected=digest)
    bundled = ROOT / "src/leuko/data/models/leuko-base"
    for file in bundled.iterdir():
        assert (folder / file.name).read_bytes() == file.read_bytes()


def test_the_archive_of_a_model_is_always_the_same(asset, tmp_path):
    MODEL["make"](tmp_path)
    assert (tmp_path / "leuko-base.zip").read_bytes() == (asset / "leuko-base.zip").read_bytes()
    names = zipfile.ZipFile(asset / "leuko-base.zip").namelist()
    assert {"leuko-base/LICENSE", "leuko-base/model-card.md"} < set(names)


def test_the_card_for_hugging_face_has_the_licence_and_the_measured_accuracy(asset):
    page = (asset / "README.md").read_text(encoding="utf-8")
    _, front, body = page.split("---\n", 2)
    about = yaml.safe_load(front)
    assert about["license"] == "apache-2.0"
    (index,) = about["model-index"]
    rows = [
        line
        for line in (ROOT / "docs/model-card.md").read_text(encoding="utf-8").splitlines()
        if re.match(r"\| \w+ \| FLAIR( \+ T1)? \| [^|]+ \| \d+ \|", line)
    ]
    assert len(index["results"]) == len(rows) > 5
    for result, row in zip(index["results"], rows, strict=True):
        assert {"type", "name"} <= result["task"].keys() & result["dataset"].keys()
        for metric in result["metrics"]:
            assert f"| {metric['value']:.3f} |" in row
    for link in re.findall(r"\]\(([^)#]+)", body):
        assert link.startswith("https://")
        assert (ROOT / link.partition("/v1.2/")[2]).exists(), link


def test_the_deposit_at_zenodo_names_its_sources(asset):
    about = json.loads((asset / "zenodo.json").read_text(encoding="utf-8"))["metadata"]
    card = load_card(weights.find("leuko-base"))
    assert card.weights_sha256 in about["description"]
    assert about["license"] == "apache-2.0"
    found = {one["identifier"] for one in about["related_identifiers"]}
    assert found == set(re.findall(r"doi (10\.\d+/[\w.-]+\w)", json.dumps(card.training["data"])))
