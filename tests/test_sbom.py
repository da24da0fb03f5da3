"""The bill of materials of a release names Leuko, and all that the wheel contains."""

import copy
import hashlib
import json
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SBOM = runpy.run_path(str(ROOT / ".ci" / "sbom.py"))
# As cyclonedx-py writes it after an installation of the wheel by its path.
WRITTEN = {
    "bomFormat": "CycloneDX",
    "specVersion": "1.6",
    "components": [
        {
            "bom-ref": "leuko==1.2",
            "name": "leuko",
            "type": "library",
            "version": "1.2",
            "externalReferences": [
                {"type": "distribution", "url": "file:///home/anna/dist/leuko-1.2.whl"},
                {"type": "website", "url": "https://example.org/leuko"},
            ],
        },
        {"bom-ref": "numpy==2.0", "name": "numpy", "type": "library", "version": "2.0"},
    ],
    "dependencies": [
        {"ref": "leuko==1.2", "dependsOn": ["numpy==2.0"]},
        {"ref": "numpy==2.0"},
    ],
    "metadata": {"tools": {}},
}


def completed(bill=WRITTEN):
    return SBOM["complete"](copy.deepcopy(bill), SBOM["niivue_of"](ROOT))


def test_the_bill_describes_leuko_without_paths_of_the_machine():
    bill = completed()
    leuko = bill["metadata"]["component"]
    assert (leuko["name"], leuko["version"], leuko["purl"]) == (
        "leuko",
        "1.2",
        "pkg:pypi/leuko@1.2",
    )
    assert [link["url"] for link in leuko["externalReferences"]] == ["https://example.org/leuko"]
    assert "file:" not in json.dumps(bill)
    assert [part["name"] for part in bill["components"]] == ["numpy", "niivue"]
    assert bill["metadata"]["tools"] == {}


def test_every_reference_leads_to_one_component():
    bill = completed()
    parts = [bill["metadata"]["component"], *bill["components"]]
    refs = [part["bom-ref"] for part in parts]
    assert sorted(refs) == sorted(one["ref"] for one in bill["dependencies"])
    assert len(refs) == len(set(refs))
    (needs,) = (one["dependsOn"] for one in bill["dependencies"] if one["ref"] == "leuko==1.2")
    assert set(needs) == set(refs) - {"leuko==1.2"}


def test_niivue_is_the_file_that_ships():
    niivue = SBOM["niivue_of"](ROOT)
    path = ROOT / "src/leuko/view/assets/niivue.umd.js"
    assert niivue["version"] in path.read_text(encoding="utf-8")
    (file,) = niivue["components"]
    assert file["hashes"][0]["content"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_every_library_in_the_wheel_is_in_the_bill():
    """THIRD_PARTY.md says which shipped files come from a package of npm."""
    page = (ROOT / "THIRD_PARTY.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `src/") and "npm" in line]
    names = {f"{part['group']}/{part['name']}" for part in completed()["components"][1:]}
    assert len(rows) == len(names)
    for name in names:
        assert any(f"`{name}`" in row for row in rows)


def test_a_bill_without_leuko_is_refused():
    with pytest.raises(SystemExit, match="lists leuko 0 times"):
        completed(WRITTEN | {"components": WRITTEN["components"][1:]})
