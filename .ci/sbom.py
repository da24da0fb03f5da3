"""Completes the bill of materials of a release: python .ci/sbom.py SBOM.json

`cyclonedx-py environment` lists the Python packages of an installation of the wheel. This script
makes Leuko the component that the bill describes, by its name in the package index instead of a
path on the machine that built it, and adds NiiVue, which the wheel contains.
"""

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NIIVUE = "src/leuko/view/assets/niivue.umd.js"


def complete(bill: dict[str, Any], niivue: dict[str, Any]) -> dict[str, Any]:
    """The bill of an environment, made that of Leuko. Exits if the bill does not list Leuko."""
    others = [part for part in bill["components"] if part["name"] != "leuko"]
    found = [part for part in bill["components"] if part["name"] == "leuko"]
    if len(found) != 1:
        sys.exit(f"the bill of materials lists leuko {len(found)} times, expected once")
    leuko = found[0] | {"type": "application", "purl": f"pkg:pypi/leuko@{found[0]['version']}"}
    links = [
        link for link in leuko.pop("externalReferences", []) if not link["url"].startswith("file:")
    ]
    leuko |= {"externalReferences": links} if links else {}
    needs = {"ref": leuko["bom-ref"], "dependsOn": []}
    rest = []
    for one in bill.get("dependencies", []):
        if one["ref"] == leuko["bom-ref"]:
            needs = one
        else:
            rest.append(one)
    needs = needs | {"dependsOn": sorted([*needs.get("dependsOn", []), niivue["bom-ref"]])}
    return bill | {
        "metadata": bill.get("metadata", {}) | {"component": leuko},
        "components": [*others, niivue],
        "dependencies": [needs, *rest, {"ref": niivue["bom-ref"]}],
    }


def niivue_of(root: Path) -> dict[str, Any]:
    """NiiVue as a component, with its version from THIRD_PARTY.md."""
    (version,) = re.findall(
        rf"^\| `{re.escape(NIIVUE)}` \| NiiVue (\S+),",
        (root / "THIRD_PARTY.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    digest = hashlib.sha256((root / NIIVUE).read_bytes()).hexdigest()
    return {
        "bom-ref": f"@niivue/niivue@{version}",
        "type": "library",
        "group": "@niivue",
        "name": "niivue",
        "version": version,
        "purl": f"pkg:npm/%40niivue/niivue@{version}",
        "licenses": [{"license": {"id": "BSD-2-Clause"}}],
        "components": [
            {
                "type": "file",
                "name": NIIVUE.removeprefix("src/"),
                "hashes": [{"alg": "SHA-256", "content": digest}],
            }
        ],
    }


if __name__ == "__main__":
    path = Path(sys.argv[1])
    made = complete(json.loads(path.read_text(encoding="utf-8")), niivue_of(ROOT))
    path.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
