"""The workflows of the code host: valid, with few rights, and true to the repository."""

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
    return [
        pytest.param(job, id=f"{path.stem}-{name}")
        for path in WORKFLOWS
        for name, job in read(path)["jobs"].items()
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
    assert release["pypi"]["needs"] == release["container"]["needs"] == "try"
    assert release["try"]["needs"] == "build"
    assert set(release["publish"]["needs"]) == {"pypi", "container"}
    assert release["pypi"]["permissions"] == {"id-token": "write"}
