"""The paragraph for a paper says what was done in a run."""

import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from conftest import segmented
from leuko.errors import LeukoError
from leuko.io.record import Edited, RunRecord
from leuko.model.card import load_card
from leuko.model.weights import DEFAULT, find
from leuko.report.citation import OWN_REFERENCE, REFERENCES, citation
from phantoms import SMALL_MODEL
from reports import a_head, a_record

ROOT = Path(__file__).parents[2]


@pytest.fixture
def written(tmp_path):
    """The citation of a made-up run with other values in its record."""

    def of(**changes):
        record = a_record(*a_head(), **changes)
        record.write(tmp_path / "run.json")
        return citation(tmp_path)

    return of


def settings(**changes):
    return replace(a_record(*a_head()).settings, **changes)


def test_a_run_is_described_by_its_own_record(heads, tmp_path):
    head = heads / "head0"
    flair, t1 = (head / f"{name}.nii.gz" for name in ("FLAIR", "T1"))
    segmented(flair, t1, tmp_path / "OUT", model=SMALL_MODEL, threshold=0.4)
    said = citation(tmp_path / "OUT")
    record = RunRecord.read(tmp_path / "OUT" / "run.json")
    assert said == citation(tmp_path / "OUT" / "run.json")
    assert said.startswith(
        "White matter hyperintensities (WMH) were segmented on FLAIR and T1 with Leuko"
    )
    assert f"model small (SHA-256 of the weights: {record.model.weights_sha256[:12]}...)" in said
    assert "the FLAIR, the T1 and the residue of an area opening of the FLAIR form" in said
    assert "a probability of at least 0.4," in said
    assert f"at least {record.settings.lesion_threshold:g}." in said
    assert f"python {record.versions['python']}, numpy {record.versions['numpy']}" in said


def test_without_a_run_the_bundled_model_is_described():
    card, said = load_card(find(DEFAULT)), citation()
    assert f"leuko-base (SHA-256 of the weights: {card.weights_sha256[:12]}...)" in said
    limits = (card.threshold, card.smallest_lesion_mm3, card.lesion_threshold)
    for limit in limits:
        assert f"at least {limit:g}" in said


def test_the_paragraph_follows_the_settings(written):
    assert "moved it by 1.5 mm" in written()
    assert "Bias fields were not corrected." in written()
    assert "Bias fields were corrected with N4" in written(settings=settings(bias_correction=True))
    assert "position that its header gives" in written(settings=settings(alignment="never"))
    assert "were segmented separately" in written(rims="separate")
    assert "ventricles counted as WMH" in written(rims="include")
    assert "caps and rims" not in written(rims=None)
    moved = replace(a_record(*a_head()).alignment, moved_mm=0.0)
    assert "The T1 was already aligned" in written(alignment=moved)
    assert "exclusion mask" in written(settings=settings(exclude=a_record(*a_head()).inputs.flair))
    assert "exclusion mask" not in written()
    assert "Rule for regions, voxel10: periventricular: voxels up to 10 mm" in written()


def test_a_run_without_t1_says_so(written):
    inputs = replace(a_record(*a_head()).inputs, t1=None)
    said = written(inputs=inputs, alignment=None)
    assert said.startswith("White matter hyperintensities (WMH) were segmented on FLAIR alone")
    assert "The T1 was" not in said
    assert "Mattes" not in said


def test_a_mask_from_elsewhere_has_no_thresholds(written):
    said = written(command="measure")
    assert said.startswith(
        "Masks of white matter hyperintensities (WMH) that were given were measured with Leuko"
    )
    assert "probability" not in said
    edited = Edited(editor="anna", saved="now", automatic_ml=2, added_ml=1, removed_ml=0)
    assert "that were corrected by a reader" in written(command="measure", edited=edited)


def test_channels_are_only_named_if_the_model_is_known(written):
    assert "each slice is labelled by" in written()  # the made-up record names no model there is
    assert "residue" not in written()


def test_every_reference_is_cited_and_every_citation_has_its_reference(written):
    for said in (written(), written(settings=settings(bias_correction=True)), citation()):
        paragraph, listed = said.split("\n\nReferences\n")
        cited = {text for words, text in REFERENCES.items() if words in paragraph}
        (version,) = set(re.findall(r"with (?:its model .* )?Leuko (\S+?)[ ;]", paragraph))
        own = OWN_REFERENCE.format(version=version)
        assert {line.removeprefix("- ") for line in listed.splitlines()} == cited | {own}
        years = re.findall(r"[a-z.]+ (?:19|20)\d\d\b", paragraph)
        assert len(years) == len(cited)


def test_a_folder_without_a_record_is_refused(tmp_path):
    with pytest.raises(LeukoError, match=r"run\.json"):
        citation(tmp_path)


def test_leuko_itself_has_a_reference_wherever_it_is_cited():
    about = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    (author,) = about["authors"]
    own = OWN_REFERENCE.format(version=about["version"])
    assert own.startswith(f"{author['name']}. {about['title']}, version {about['version']}")
    assert f"- {own}\n" in citation()
    page = (ROOT / "docs" / "citing.md").read_text(encoding="utf-8")
    assert f"> {OWN_REFERENCE.format(version='VERSION')}\n" in page


def test_the_files_for_citing_agree_with_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    zenodo = json.loads((ROOT / ".zenodo.json").read_text(encoding="utf-8"))
    cff = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    (doi,) = re.findall(r"doi: (\S+)", cff)
    about = yaml.safe_load(cff)
    assert "preferred-citation" not in about  # a code host would show this one alone
    assert [work["doi"] for work in about["references"]] == [doi]
    assert [author["name"] for author in about["authors"]] == [
        author["name"] for author in project["authors"]
    ]
    assert REFERENCES["Xu et al. 2018"].endswith(f"doi:{doi}")
    assert [related["identifier"] for related in zenodo["related_identifiers"]] == [doi]
    assert f"\nversion: {project['version']}\n" in cff
    assert f"\nlicense: {project['license']}\n" in cff
    assert (zenodo["version"], zenodo["license"]) == (project["version"], project["license"])
    assert zenodo["keywords"] == project["keywords"]
    assert [creator["name"] for creator in zenodo["creators"]] == [
        author["name"] for author in project["authors"]
    ]
