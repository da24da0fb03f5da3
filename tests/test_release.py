"""What a release consists of: version, packages, notes, the recipe for conda-forge."""

import json
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import replace
from email import message_from_bytes
from pathlib import Path

import pytest
import yaml

from leuko.model import weights
from leuko.model.card import load_card
from test_docs import PAGES

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RELEASE = runpy.run_path(str(ROOT / ".ci" / "release.py"))
MODEL = runpy.run_path(str(ROOT / ".ci" / "model_asset.py"))
URL, TAG = "https://example.org/leuko", f"v{PROJECT['version']}"
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


@pytest.fixture(scope="module")
def tracked():
    """The files that git knows."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("NOT TESTED: the files of the repository are only known to git")
    listed = subprocess.run(
        [git, "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return set(filter(None, listed.stdout.split("\0")))


def test_the_wheel_holds_the_package_and_nothing_else(wheel, tracked):
    names = set(zipfile.ZipFile(wheel).namelist())
    info = f"leuko-{PROJECT['version']}.dist-info/"
    shipped = {name.removeprefix("src/") for name in tracked if name.startswith("src/")}
    assert {name for name in names if not name.startswith(info)} == shipped


def test_the_source_archive_holds_what_git_knows_and_nothing_else(tracked, tmp_path):
    """Whatever else lies in the checkout when it is built."""
    others = {
        "assets/leuko-base.zip",
        "notes.md",
        "site/index.html",
        "installed/bin/python",
        "a.nii",
    }
    for name in tracked | others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("pyproject.toml", ".gitignore", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    listing = (
        "from hatchling.builders.sdist import SdistBuilder\n"
        "for file in SdistBuilder('.').recurse_included_files(): print(file.relative_path)"
    )
    told = subprocess.run(
        [sys.executable, "-c", listing], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert {Path(line).as_posix() for line in told.stdout.splitlines()} == tracked


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
    assert json.loads((ROOT / ".zenodo.json").read_text(encoding="utf-8"))["version"] == version
    for name in ("docs/boutiques.json", "docs/boutiques-segment.json"):
        about = json.loads((ROOT / name).read_text(encoding="utf-8"))
        assert about["tool-version"] == version
    # The tags of the container, wherever they are.
    tagged = {"docs/containers.md", "docs/pipelines.md", "contrib/nextflow/leuko/segment/main.nf"}
    for home in (ROOT / "docs", ROOT / "contrib"):
        for path in home.rglob("*"):
            if path.suffix not in {".md", ".nf", ".yml", ".test", ".py", ".smk", ".json"}:
                continue
            tags = re.findall(r"\bleuko:(\d[\w.]*\w)", path.read_text(encoding="utf-8"))
            assert set(tags) <= {version}, path
            assert tags or path.relative_to(ROOT).as_posix() not in tagged, path
    steps = (ROOT / "docs/releasing.md").read_text(encoding="utf-8")
    for name in (*tagged, ".zenodo.json", "CITATION.cff", "recipe/recipe.yaml"):
        assert f"`{name}`" in steps
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
    minimum = recipe["context"]["python_min"]
    run = [line.replace("${{ python_min }}", minimum) for line in recipe["requirements"]["run"]]
    assert set(run) == needed
    assert "python ${{ python_min }}.*" in recipe["requirements"]["host"]
    assert f"leuko = {PROJECT['scripts']['leuko']}" in recipe["build"]["python"]["entry_points"]


def test_the_recipe_names_its_home_its_maintainers_and_all_licences():
    recipe = yaml.safe_load((ROOT / "recipe/recipe.yaml").read_text(encoding="utf-8"))
    assert recipe["about"]["license_file"] == PROJECT["license-files"]
    assert recipe["about"]["homepage"] == "${{ homepage }}"
    assert recipe["context"]["homepage"].startswith("https://")
    assert recipe["extra"]["recipe-maintainers"]
    steps = (ROOT / "docs/releasing.md").read_text(encoding="utf-8")
    for name in ("source", "homepage", "recipe-maintainers"):  # to be filled in
        assert f"`{name}`" in steps


@pytest.fixture
def checkout(tmp_path):
    """The files that a release changes, ready for it."""
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    dated = re.sub("^(## [^,]+), .*$", r"\1, 2027-01-31", changes, count=1, flags=re.MULTILINE)
    (tmp_path / "CHANGELOG.md").write_text(dated, encoding="utf-8")
    cited = (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
    cited = [line for line in cited if not line.startswith(("date-released:", "repository-code:"))]
    cited += ["date-released: 2027-01-31", f"repository-code: {URL}", ""]
    (tmp_path / "CITATION.cff").write_text("\n".join(cited), encoding="utf-8")
    return tmp_path


def test_a_release_has_notes_addresses_and_absolute_links(checkout):
    url, tag = URL, TAG
    notes = RELEASE["prepare"](checkout, tag, url, "https://example.org/docs")
    assert notes.startswith("The first release.")
    assert "## " not in re.sub("^###.*", "", notes, flags=re.MULTILINE)
    page = (checkout / "README.md").read_text(encoding="utf-8")
    assert f"]({url}/raw/{tag}/docs/method.png)" in page
    assert f"]({url}/blob/{tag}/docs/quickstart.md)" in page
    for link in re.findall(r"\]\(([^)]+)\)", page):
        assert link.startswith("https://")
    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["urls"]["Homepage"] == url
    assert project["urls"]["Documentation"] == "https://example.org/docs"
    assert project["dependencies"] == PROJECT["dependencies"]


def test_another_tag_is_not_released(checkout):
    with pytest.raises(SystemExit, match=r"the tag is v9, expected v\d"):
        RELEASE["prepare"](checkout, "v9", URL)


def test_a_version_without_a_date_is_not_released(checkout):
    changes = checkout / "CHANGELOG.md"
    dated = changes.read_text(encoding="utf-8")
    changes.write_text(dated.replace("2027-01-31", "unreleased"), encoding="utf-8")
    with pytest.raises(SystemExit, match="YYYY-MM-DD"):
        RELEASE["prepare"](checkout, TAG, URL)


@pytest.mark.parametrize("line", ["date-released: 2027-01-31", f"repository-code: {URL}"])
def test_a_version_without_its_citation_is_not_released(checkout, line):
    citation = checkout / "CITATION.cff"
    cited = citation.read_text(encoding="utf-8")
    citation.write_text(cited.replace(line, f"{line}0"), encoding="utf-8")
    with pytest.raises(SystemExit, match=re.escape(f'CITATION.cff has no line "{line}"')):
        RELEASE["prepare"](checkout, TAG, URL)


def test_a_released_page_installs_the_package_and_not_a_clone(tmp_path, checkout):
    for path in PAGES:
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():  # the changelog with a date
            shutil.copy(path, target)
    RELEASE["release_pages"](checkout)
    commands = set()
    for path in PAGES:
        name = path.relative_to(ROOT).as_posix()
        page = (tmp_path / name).read_text(encoding="utf-8")
        if name in RELEASE["FOR_CONTRIBUTORS"]:
            assert page == path.read_text(encoding="utf-8")
            continue
        for words in ("pip install -e", "Clone this repository", "constraints.txt", "clone -->"):
            assert words not in page, name
        commands |= set(re.findall(r"pip install .*?leuko\S*", page))
    assert 'pip install "leuko[demo]"' in commands
    allowed = re.compile(r'pip install "leuko\[[a-z]+\]"|pip install leuko')
    assert [command for command in commands if not allowed.match(command)] == []
    readme = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert 'pip install "leuko[demo]" && leuko demo\n' in readme
    assert "pytest" not in readme
    assert readme.count("--8<-- [") == 2  # the site includes this part


def test_the_pages_of_a_clone_stay_before_the_first_release(tmp_path):
    shutil.copy(ROOT / "README.md", tmp_path)
    (tmp_path / "CHANGELOG.md").write_text("# Changes\n\n## 0.1.0, unreleased\n")
    RELEASE["release_pages"](tmp_path)
    assert (tmp_path / "README.md").read_bytes() == (ROOT / "README.md").read_bytes()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("pip install -e .", "pip install leuko"),
        ('pip install -e ".[demo]" && leuko demo', 'pip install "leuko[demo]" && leuko demo'),
        ('`pip install -c constraints.txt -e ".[a,b]"`', '`pip install "leuko[a,b]"`'),
        ("a\n\n<!-- clone -->\nb\n<!-- /clone -->\n\nc", "a\n\nc"),
        ("pip install dask-jobqueue", "pip install dask-jobqueue"),
    ],
)
def test_a_released_line(line, expected):
    assert RELEASE["released"](line) == expected + "\n"


@pytest.fixture(scope="module")
def asset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("asset")
    MODEL["make"](folder, "v1.2", "https://example.org/leuko")
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LEUKO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def test_the_released_model_is_the_bundled_one(leuko, asset, cache):
    digest, name = (asset / "leuko-base.zip.sha256").read_text().split()
    code, out, _ = leuko("models", "pull", asset / name, "--sha256", digest)
    assert code == 0
    assert "already bundled with Leuko; nothing was installed" in out
    assert not cache.exists()


def test_the_page_for_hugging_face_gives_a_command_that_installs_the_model(
    leuko, asset, cache, monkeypatch
):
    monkeypatch.chdir(asset)
    page = (asset / "huggingface-README.md").read_text(encoding="utf-8")
    (command,) = re.findall("^leuko (models pull .*)$", page, re.MULTILINE)
    assert leuko(*command.split())[0] == 0
    name = command.split()[-1]
    assert f"leuko segment --model {name} " in page
    bundled = ROOT / "src/leuko/data/models/leuko-base"
    assert (cache / name / "model.onnx").read_bytes() == (bundled / "model.onnx").read_bytes()
    assert load_card(cache / name) == replace(load_card(bundled), name=name)


def test_the_archive_of_a_model_is_always_the_same(asset, tmp_path):
    MODEL["make"](tmp_path)
    assert (tmp_path / "leuko-base.zip").read_bytes() == (asset / "leuko-base.zip").read_bytes()
    names = zipfile.ZipFile(asset / "leuko-base.zip").namelist()
    assert {"leuko-base/LICENSE", "leuko-base/model-card.md"} < set(names)


def test_the_card_in_the_archive_has_no_link_that_leads_nowhere(asset):
    page = zipfile.ZipFile(asset / "leuko-base.zip").read("leuko-base/model-card.md").decode()
    for link in re.findall(r"\]\(([^)]+)\)", page):
        assert link.startswith(("https://", "#"))
    written = (ROOT / "docs/model-card.md").read_text(encoding="utf-8")
    assert "(methods has the details" in page
    assert "([methods](methods.md#uncertainty) has the details" in written


def test_the_card_for_hugging_face_has_the_licence_and_the_measured_accuracy(asset):
    page = (asset / "huggingface-README.md").read_text(encoding="utf-8")
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
