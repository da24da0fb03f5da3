"""The documents say what the program does."""

import json
import re
import runpy
from pathlib import Path

import pytest

from leuko.cli import main
from leuko.evaluate import COLUMNS
from leuko.metrics import MEASURES

COMMANDS = (
    "segment", "batch", "bids", "challenge-score", "challenge", "compare", "evaluate", "train",
    "demo", "synth", "export", "models",
)  # fmt: skip
COMMAND = rf"\bleuko ({'|'.join(COMMANDS)})\b.*"
ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path for home in ("runs", "benchmarks") for path in (ROOT / home).glob("*.py"))
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_scripts_that_made_the_figures_fit_the_package(script, monkeypatch):
    monkeypatch.syspath_prepend(str(script.parent))
    runpy.run_path(str(script), run_name="imported")


def test_the_page_of_commands_is_up_to_date():
    page = runpy.run_path(str(ROOT / "docs" / "make_cli.py"))["page"]()
    assert page == text("docs/cli.md"), "run python docs/make_cli.py"


def test_every_command_has_its_help_on_the_page():
    from leuko.cli import app, models

    commands = {info.callback.__name__.replace("_", "-") for info in app.registered_commands}
    commands |= {f"models {info.name}" for info in models.registered_commands}
    assert commands == set(re.findall(r"^## leuko (\w.*)$", text("docs/cli.md"), re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    for link in links:
        assert link.startswith("https://") or (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_on_a_page_exist(page):
    known = set(re.findall(r"--[a-z0-9-]+", text("docs/cli.md")))
    for line in page.read_text(encoding="utf-8").splitlines():
        command = re.search(COMMAND, line)
        if command:
            assert set(re.findall(r"(?<=\s)--[a-z0-9-]+", command.group())) <= known, line


def test_every_measure_is_explained():
    for measure in MEASURES:
        assert measure.name in text("docs/methods.md")
    for column in COLUMNS:
        assert f"`{column}`" in text("docs/methods.md")


def test_the_readme_installs_and_runs_with_two_commands():
    blocks = re.findall(r"^```sh\n(.*?)^```$", text("README.md"), re.MULTILINE | re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines() if "pip install" in line]
    assert [command.split(" && ")[-1] for command in commands] == ["leuko demo", "pytest"]
    assert "train" not in commands[0]  # no torch
    assert "-c constraints.txt" in commands[1]


def test_the_readme_shows_what_the_demo_prints(capsys, tmp_path):
    """The lines; their last digits may differ between processors."""
    with pytest.raises(SystemExit, match="0"):
        main(["demo", "-o", str(tmp_path / "leuko-demo")])
    printed = capsys.readouterr().out.replace(str(tmp_path) + "/", "")
    shown = re.search(r"^```text\n(made .*?)^```$", text("README.md"), re.MULTILINE | re.DOTALL)

    def shape(lines):
        return re.sub(r"[\d.]+", "0", re.sub(r" +", " ", lines)).splitlines()

    assert shape(shown.group(1)) == shape(printed)


def table(page, first):
    """The cells of the rows that start with a text."""
    lines = [line for line in text(page).splitlines() if line.startswith(f"| {first}")]
    return [cells(line) for line in lines]


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_card_and_the_experiments_give_the_same_accuracy():
    rows = [row for first in ("mean ", "all WMH") for row in table("docs/model-card.md", first)]
    assert len(rows) == 6
    for row in rows:
        assert row in table("EXPERIMENTS.md", row[0]), row


@pytest.mark.parametrize("patients", ["Ljubljana", "MSLesSeg", "Tabriz"])
def test_the_readme_gives_the_means_of_the_card(patients):
    shown = table("README.md", patients)
    assert len(shown) == 2
    for _, scans, dsc, f1 in shown:
        rows = [
            row
            for row in table("docs/model-card.md", patients.lower())
            if row[1] == scans and "," not in row[0]
        ]
        for mean, column in ((dsc, 2), (f1, 6)):
            values = [float(row[column]) for row in rows]
            assert float(mean) == pytest.approx(sum(values) / len(values), abs=0.0101)


def test_the_readme_gives_the_figures_of_the_benchmark():
    peers = text("benchmarks/README.md").split("## Peers")[1]
    blocks = [block.splitlines() for block in peers.split("\n\n") if block.startswith("| ")]
    rows = {}  # by the first words of the table and of the row
    for head, _, *lines in blocks:
        for line in lines:
            name, *values = cells(line)
            rows[cells(head)[0], name] = values
    starts = ("Leuko", "leuko-base", "2-D", "3-D", "FLAIR")
    shown = [row for start in starts for row in table("README.md", start)]
    assert len(shown) == 8
    for name, *scores, seconds, peak in shown:
        _, measured_seconds, *_, measured_peak = rows["one pair", name]
        assert seconds == f"{float(measured_seconds):.1f}"
        assert peak == measured_peak
        if "mirrorings" in name:
            assert scores == ["", ""]
            continue
        for score, scans in zip(scores, ("test, 18 subjects", "real, 6 subjects"), strict=True):
            assert score == f"{float(rows[scans, name][0].split()[0]):.2f}", name


def test_the_card_says_what_the_model_is():
    card = json.loads((ROOT / "src/leuko/models/leuko-base/card.json").read_text())
    page = text("docs/model-card.md")
    assert f"{card['training']['steps']:,} steps" in page
    for steps in card["training"]["mean_of_steps"]:
        assert f"{steps:,}" in page
    assert str([stage[0] for stage in card["stages"]])[1:-1] in page
    assert f"{card['smallest_lesion_mm3']:g} mm³" in page
    size = (ROOT / "src/leuko/models/leuko-base/model.onnx").stat().st_size
    assert f"{size / 1e6:.1f} MB" in page
