"""The documents say what the program does."""

import html
import itertools
import json
import math
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import typer

from leuko.cli.app import app, main
from leuko.cohort.bids_names import read_filter
from leuko.cohort.subject_table import read_table
from leuko.evaluation.evaluate import COLUMNS
from leuko.evaluation.metrics import MEASURES
from leuko.model.calibration import Seen, judge
from leuko.model.card import load_card
from leuko.model.weights import DEFAULT, find
from phantoms import SMALL_MODEL, make_phantom

ROOT = Path(__file__).parents[1]
BLOCKS = re.MULTILINE | re.DOTALL
SCRIPTS = sorted(
    path for home in ("experiments", "benchmarks") for path in (ROOT / home).glob("*.py")
)
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / home / "README.md" for home in ("experiments", "benchmarks")),
]


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_scripts_that_made_the_figures_fit_the_package(script, monkeypatch):
    monkeypatch.syspath_prepend(str(script.parent))
    runpy.run_path(str(script), run_name="imported")


def test_the_log_of_experiments_lists_its_dated_findings_newest_first():
    log = text("experiments/README.md")
    headings = re.findall(r"^## (.*)$", log, re.MULTILINE)
    assert re.findall(r"^- \[(.*?)\]\(#", log, re.MULTILINE) == headings
    *findings, last = headings
    assert last == "Waiting for a GPU"
    dates = [re.match(r"(\d{4}-\d\d-\d\d): \S", heading)[1] for heading in findings]
    assert dates == sorted(dates, reverse=True)


def test_the_page_of_the_python_interface_is_up_to_date():
    page = runpy.run_path(str(ROOT / "docs" / "make_api.py"))["page"]()
    assert text("docs/api.md") == page


def test_the_page_of_commands_is_up_to_date():
    page = runpy.run_path(str(ROOT / "docs" / "make_cli.py"))["page"]()
    assert page == text("docs/cli.md"), "run python docs/make_cli.py"


def test_every_command_has_its_help_on_the_page():
    from leuko.cli.app import app, models

    commands = {info.callback.__name__.replace("_", "-") for info in app.registered_commands}
    commands |= {f"models {info.name}" for info in models.registered_commands}
    assert commands == set(re.findall(r"^## leuko (\w.*)$", text("docs/cli.md"), re.MULTILINE))


def blocks(page, language):
    """The code blocks of a page in a language, each with the place that it has there."""
    written = page.read_text(encoding="utf-8")
    found = re.findall(rf"^```{language}\n(.*?)^```$", written, BLOCKS)
    return [pytest.param(block, id=f"{page.name}-{n}") for n, block in enumerate(found, 1)]


def spans(page):
    """What a page shows as code within a line."""
    written = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=BLOCKS)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", written)]


def anchors(page):
    """The names by which links lead to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_scripts_that_a_page_names_exist_and_have_its_options(page):
    for span in spans(page):
        for script in re.findall(r"\b(?:experiments|benchmarks|docs|tests)/\w+\.(?:py|sh)\b", span):
            assert (ROOT / script).is_file(), span
            options = re.findall(r"(?<=\s)--[a-z0-9-]+", span.partition(script)[2])
            written = text(script)
            for option in options:
                known = option in written or option.startswith("--hypothesis")
                assert known, f"{span}: {script} has no {option}"


@pytest.mark.parametrize("page", ["docs/extending.md", "AGENTS.md", "CONTRIBUTING.md"])
def test_modules_that_contributors_are_sent_to_exist(page):
    named = set(re.findall(r"`([\w/]+\.(?:py|tsv|md))`", text(page)))
    homes = (ROOT, ROOT / "src" / "leuko")
    lost = {name for name in named if not any((home / name).is_file() for home in homes)}
    assert lost <= {"cli/rotate.py"}  # the example of a new command


def run_nothing(group):
    """Make all commands of a group check their arguments, and do no more."""
    for command in group.commands.values():
        if hasattr(command, "commands"):
            run_nothing(command)
        else:
            command.callback = lambda **_: None
    return group


def accepts(arguments):
    """Raises what the command line raises for arguments that it does not take."""
    run_nothing(typer.main.get_command(app)).main(arguments, standalone_mode=False)


def command_lines(page):
    """The arguments of `leuko` in the blocks of a page: alone, in a container, by torchrun."""
    for language in ("sh", "text"):
        for block in blocks(page, language):
            for line in block.values[0].replace("\\\n", " ").splitlines():
                start = r"(?:.*&& )?leuko|docker run .*leuko:\S+|apptainer run .*\.sif"
                command = re.match(rf"\s*({start}|torchrun .*leuko\.cli)\s(.+)", line)
                if command:
                    words = shlex.split(command[2], comments=True)
                    in_container = command[1].startswith(("docker", "apptainer"))
                    yield ["bids", *words] if in_container and "/" in words[0] else words


def shell_lines(page):
    """The lines of the blocks of a page that begin with another program than `leuko`."""
    for language in ("sh", "text"):
        for block in blocks(page, language):
            for line in block.values[0].replace("\\\n", " ").splitlines():
                for command in line.split(" && "):
                    if re.match(r"(?:python|pip|pytest|mkdocs|ruff) ", command):
                        yield shlex.split(command, comments=True)


LINES = [
    pytest.param(words, id=f"{page.parent.name}-{page.stem}-{'-'.join(words[:3])}")
    for page in PAGES
    for words in shell_lines(page)
]


@pytest.mark.parametrize("words", LINES)
def test_other_command_lines_name_scripts_options_and_extras_that_exist(words):
    options = {word.partition("=")[0] for word in words if word.startswith("--")}
    if words[0] == "python":
        written = text(words[1])
        assert all(option in written for option in options)
    elif words[0] == "pip":
        named = [extra for word in words for extra in re.findall(r"^\.\[(.*)\]$", word)]
        extras = tomllib.loads(text("pyproject.toml"))["project"]["optional-dependencies"]
        assert {extra for some in named for extra in some.split(",")} <= set(extras)
    else:
        assert all((ROOT / word).exists() for word in words if "/" in word)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_is_of_a_language_that_is_tested(page):
    fences = re.findall(r"^ *```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    tested = {"python", "sh", "text", "json", "pycon"}  # "pycon": the docstrings' own examples
    assert set(fences[::2]) <= tested
    assert set(fences[1::2]) <= {""}
    assert "json" not in fences or page.name == "cohorts.md"
    assert "pycon" not in fences or page.name == "api.md"


WRITTEN = [
    pytest.param(words, id=f"{page.name}-{'-'.join(words[:2])}")
    for page in PAGES
    if page.name != "cli.md"
    for words in command_lines(page)
]


@pytest.mark.parametrize("words", WRITTEN)
def test_the_command_line_takes_what_the_pages_show(words):
    accepts(words)


def test_the_pages_show_command_lines():
    assert len(WRITTEN) > 30
    with pytest.raises(Exception, match="--no-such"):
        accepts(["segment", "--flair", "FLAIR", "-o", "OUT", "--no-such"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_within_a_line_exist_and_have_their_options(page):
    sections = re.split(r"^## leuko ?", text("docs/cli.md"), flags=re.MULTILINE)[1:]
    known = {s.splitlines()[0]: set(re.findall(r"--[a-z0-9-]+", s)) for s in sections}
    known["models"] = set()
    for span in spans(page):
        command = re.match(r"leuko ((?:models )?[a-z][a-z-]*)(.*)", span)
        if command:
            assert command[1] in known, span
            assert set(re.findall(r"(?<=\s)--[a-z0-9-]+", command[2])) <= known[command[1]], span


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with the scans that examples read; commands that they start are checked, not run."""

    def checked(command, **_):
        assert command[0] == "leuko"
        accepts(command[1:])

    make_phantom(np.random.default_rng(0)).write(tmp_path)
    shutil.copytree(SMALL_MODEL, tmp_path / "TISSUES")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", checked)
    monkeypatch.setitem(sys.modules, "dask_jobqueue", cluster_module())
    return tmp_path


def cluster_module():
    """In place of dask_jobqueue: the same signatures, without a cluster."""

    class SLURMCluster:
        scheduler_address = "tcp://127.0.0.1:8786"

        def __init__(self, *, cores: int, processes: int, memory: str, walltime: str) -> None:
            pass

        def adapt(self, *, maximum_jobs: int) -> None:
            pass

    module = ModuleType("dask_jobqueue")
    module.SLURMCluster = SLURMCluster
    return module


EXAMPLES = [block for page in PAGES for block in blocks(page, "python")]


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_in_python_run_and_print_what_they_say(example, workplace, capsys):
    """Behind a print stands what it shows; the digits may differ."""
    (workplace / "example.py").write_text(example, encoding="utf-8")
    runpy.run_path(str(workplace / "example.py"), run_name="__main__")
    said = re.findall(r"^print\(.*\)  # (.*)$", example, re.MULTILINE)
    assert len(said) == example.count("print(")
    assert shape(capsys.readouterr().out) == shape("\n".join(said))


def test_the_filter_of_the_page_on_cohorts_is_taken(tmp_path):
    (filters,) = (block.values[0] for block in blocks(ROOT / "docs/cohorts.md", "json"))
    (tmp_path / "filter.json").write_text(filters, encoding="utf-8")
    assert set(read_filter(tmp_path / "filter.json")) == {"flair", "t1w"}


@pytest.mark.parametrize(("number", "layout"), [(0, "{}/{}.nii.gz"), (1, "{}_{}.nii.gz")])
def test_the_page_on_cohorts_makes_a_table_of_each_layout(tmp_path, monkeypatch, number, layout):
    for name, scan in itertools.product(("anna", "bert"), ("FLAIR", "T1")):
        path = tmp_path / "scans" / layout.format(name, scan)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    example = blocks(ROOT / "docs/cohorts.md", "python")[number].values[0]
    (tmp_path / "example.py").write_text(example, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    runpy.run_path("example.py")
    anna, bert = read_table(Path("PAIRS.tsv"))
    assert (anna.name, bert.name) == ("anna", "bert")
    assert all(scan.is_file() for row in (anna, bert) for scan in (row.flair, row.t1))


def shape(lines):
    """Lines without their digits and columns."""
    return re.sub(r"[\d.]+", "0", re.sub(r" +", " ", lines)).splitlines()


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


def test_the_demo_does_the_whole_job_and_prints_what_the_readme_shows(capsys, tmp_path):
    """The lines, and the measures nearly: last digits may differ between processors."""
    with pytest.raises(SystemExit, match="0"):
        main(["demo", "-o", str(tmp_path / "leuko-demo")])
    printed = capsys.readouterr().out.replace(str(tmp_path) + "/", "")
    assert (tmp_path / "leuko-demo" / "picture.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match="2"):
        main(["demo", "-o", str(tmp_path / "leuko-demo")])
    assert "exists already; delete it" in capsys.readouterr().err
    shown = re.search(r"^```text\n(made .*?)^```$", text("README.md"), re.MULTILINE | re.DOTALL)
    assert shape(shown.group(1)) == shape(printed)
    told, seen = (
        re.findall(r"[\d.]+", lines.split("\n\n")[1]) for lines in (shown.group(1), printed)
    )
    assert [float(n) for n in seen] == pytest.approx([float(n) for n in told], rel=0.1)


def table(page, first):
    """The cells of the rows that start with a text."""
    lines = [line for line in text(page).splitlines() if line.startswith(f"| {first}")]
    return [cells(line) for line in lines]


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_means_of_the_card_are_those_of_its_rows():
    rows = table("docs/model-card.md", "")
    scans = [row for row in rows if len(row) == 10 and re.search(r"_.*\d$", row[0]) and row[3]]
    means = [row for row in rows if len(row) == 9 and row[3].isdigit()]
    assert len(scans) > 20
    assert sum(int(row[3]) for row in means) == len(scans)
    for source, kind, counted, count, *values in means:
        own = [
            row[3:8]
            for row in scans
            if (row[0].split("_")[0], *row[1:3]) == (source, kind, counted)
        ]
        assert len(own) == int(count)
        columns = zip(*own, strict=True)
        found = [sum(map(float, column)) / len(own) for column in columns]
        assert found == pytest.approx([float(v) for v in values], abs=0.006)


@pytest.mark.parametrize("patients", ["Ljubljana", "MSLesSeg", "Tabriz"])
def test_the_readme_gives_the_means_of_the_card(patients):
    shown = table("README.md", patients)
    assert shown
    means = {
        counted: (dsc, h95, recall, f1)
        for _, scans, counted, _, dsc, h95, _, recall, f1 in (
            row for row in table("docs/model-card.md", f"{patients.lower()} |")
        )
        if scans == "FLAIR + T1"
    }
    assert len(shown) == len(means)
    for _, counted, *values in shown:
        assert [float(v) for v in values] == pytest.approx(
            [float(v) for v in means[counted]], abs=0.051
        )


def test_the_methods_give_the_figures_of_the_benchmark():
    peers = text("benchmarks/README.md").split("## Peers")[1]
    blocks = [block.splitlines() for block in peers.split("\n\n") if block.startswith("| ")]
    rows = {}  # by the first words of the table and of the row
    for head, _, *lines in blocks:
        for line in lines:
            name, *values = cells(line)
            rows[cells(head)[0], name] = values
    starts = ("Leuko", "leuko-base", "2-D", "3-D", "FLAIR")
    shown = [row for start in starts for row in table("docs/methods.md", start)]
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


def test_the_figures_show_the_numbers_of_the_tables():
    """Each figure holds its numbers as a description."""
    drawings = runpy.run_path(str(ROOT / "docs" / "make_figures.py"))["drawings"]()
    assert {f"docs/{name}" for name in drawings} == {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.svg")
    }
    for name, drawing in drawings.items():
        described = re.search(r"<dc:description>(.*?)</dc:description>", text(f"docs/{name}"))
        shown = json.loads(html.unescape(described[1]))
        assert shown == drawing.numbers, f"{name}: run python docs/make_figures.py"


def test_the_intervals_of_the_page_are_those_of_the_model():
    calibration = load_card(find(DEFAULT)).calibration
    page = text("docs/methods.md")
    assert f"{calibration.temperature:.2f} for `leuko-base`" in page
    pattern = r"^\| ([\d.]+) \| ([\d.]+) to ([\d.]+) \| ([\d.]+) to ([\d.]+) \|$"
    rows = re.findall(pattern, page, re.MULTILINE)
    assert len(rows) == (6 if calibration.volume_width else 0)
    for found, *ends in ([float(cell) for cell in row] for row in rows):
        told = []
        for contrast, spread in ((1.4, 0.6), (1.2, 1.2)):
            seen = Seen(found, found, math.exp(spread) * (found + 0.1) - 0.1, contrast)
            told += judge(calibration, seen).volume_interval_ml
        assert told == pytest.approx(ends, abs=0.06)


def test_the_card_says_what_the_model_is():
    card = json.loads((find(DEFAULT) / "card.json").read_text())
    page = text("docs/model-card.md")
    assert f"{card['training']['steps']:,} steps" in page
    assert f"the mean of {card['training']['mean_of_runs']} such trainings" in page
    for limit in ("threshold", "lesion_threshold"):
        assert f"{card[limit]:g}" in page
    for name in card["classes"][:-2]:
        assert name in page.lower()
    assert str([stage[0] for stage in card["stages"]])[1:-1] in page
    assert f"{card['smallest_lesion_mm3']:g} mm³" in page
    size = (find(DEFAULT) / "model.onnx").stat().st_size
    assert f"{size / 1e6:.1f} MB" in page
