"""Makes the files of the bundled model for a release: python .ci/model_asset.py OUT [TAG URL]

- leuko-base.zip: what `leuko models pull` installs; the same bytes from the same model
- leuko-base.zip.sha256
- huggingface-README.md: the model card for Hugging Face, with its metadata, the measured accuracy
  and how to use the model
- zenodo.json: the metadata for Zenodo

Every number comes from docs/model-card.md and the model's own card. TAG and URL (the repository's)
make the links of the page for Hugging Face absolute. The card in the archive has none, so that the
archive is the same in each version of Leuko.
"""

import re
import runpy
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from leuko.io.files import sha256, write_json
from leuko.model.card import CARD_FILE, ModelCard, load_card
from leuko.model.weights import DEFAULT, find

ROOT = Path(__file__).parents[1]
RELEASE = runpy.run_path(str(ROOT / ".ci" / "release.py"))
PAGE = ROOT / "docs" / "model-card.md"
# Columns of the table of means: type of the metric, name.
METRICS = {
    "DSC": ("dice", "Dice (DSC)"),
    "H95, mm": ("hausdorff95_mm", "Hausdorff 95 (H95), mm"),
    "AVD, %": ("avd_percent", "Volume difference (AVD), %"),
    "recall": ("lesion_recall", "Lesion recall"),
    "F1": ("lesion_f1", "Lesion F1"),
}
USE = """\
## Use

Leuko contains this model. After `pip install leuko`:

```text
leuko segment --flair FLAIR.nii.gz --t1 T1.nii.gz -o OUT
```

A version of Leuko that contains another model under this name can use this one under a name of its
own. Download `{file}.zip`, then:

```text
leuko models pull {file}.zip --name {name}
leuko segment --model {name} --flair FLAIR.nii.gz --t1 T1.nii.gz -o OUT
```
"""
TASK = {"type": "image-segmentation", "name": "Segmentation of white matter hyperintensities"}


def make(out: Path, tag: str = "", url: str = "") -> None:
    """Write all files into a folder."""
    folder = find(DEFAULT)
    card, page = load_card(folder), PAGE.read_text(encoding="utf-8")
    out.mkdir(parents=True, exist_ok=True)
    archive = out / f"{card.name}.zip"
    files = {
        path.name: path.read_bytes()
        for path in (folder / CARD_FILE, folder / card.weights, ROOT / "LICENSE")
    }
    files[PAGE.name] = RELEASE["without_relative_links"](page).encode()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as content:
        for name, stored in files.items():
            entry = zipfile.ZipInfo(f"{card.name}/{name}")  # always of the same date
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            content.writestr(entry, stored)
    digest = sha256(archive)
    (out / f"{archive.name}.sha256").write_text(f"{digest}  {archive.name}\n", encoding="ascii")
    shown = hugging_face(card, page, tag, url)
    (out / "huggingface-README.md").write_text(shown, encoding="utf-8")
    write_json(out / "zenodo.json", zenodo(card, page))


def hugging_face(card: ModelCard, page: str, tag: str, url: str) -> str:
    """The model card with the metadata that Hugging Face reads."""
    about = {
        "license": card.licence.lower(),
        "library_name": "leuko",
        "pipeline_tag": "image-segmentation",
        "tags": ["medical", "mri", "flair", "white-matter-hyperintensities", "onnx"],
        "model-index": [{"name": card.name, "results": list(results(page))}],
    }
    if url:
        page = RELEASE["with_absolute_links"](page, tag, url, "docs")
    front = yaml.safe_dump(about, sort_keys=False, allow_unicode=True)
    summary, rest = page.split("\n## ", 1)
    name = f"{card.name}-{card.leuko_version}"
    return f"---\n{front}---\n\n{summary}\n{USE.format(file=card.name, name=name)}\n## {rest}"


def results(page: str) -> Iterator[dict[str, Any]]:
    """The table of means in the model card, as results of a model-index."""
    table = re.search(r"^Means by source:\n\n(.*?)\n\n", page, re.MULTILINE | re.DOTALL)
    assert table
    head, _, *rows = (
        [cell.strip() for cell in row.split("|")[1:-1]]
        for row in table[1].split("\n")
        if row.startswith("|")
    )
    for cells in rows:
        row = dict(zip(head, cells, strict=True))
        yield {
            "task": dict(TASK),
            "dataset": {
                "type": row["source"],
                "name": f"{row['source']}, left out of the training; {row['scans']}; "
                f"counted: {row['counted']}; n = {row['n']}",
            },
            "metrics": [
                {"type": kind, "name": name, "value": float(row[column])}
                for column, (kind, name) in METRICS.items()
            ],
        }


def zenodo(card: ModelCard, page: str) -> dict[str, Any]:
    """The metadata of a deposit: https://developers.zenodo.org."""
    dois = sorted(set(re.findall(r"\bdoi (10\.\S+?)[,;)]", page)))
    text = page.split("\n\n")[1].replace("\n", " ")
    return {
        "metadata": {
            "title": f"{card.name}: a model of Leuko for white matter hyperintensities",
            "upload_type": "other",
            "description": f"<p>{text}</p><p>SHA-256 of the weights: {card.weights_sha256}</p>",
            "creators": [{"name": "The Leuko developers"}],
            "license": card.licence.lower(),
            "version": card.leuko_version,
            "keywords": ["MRI", "FLAIR", "white matter hyperintensities", "segmentation", "ONNX"],
            "related_identifiers": [
                {"identifier": doi, "relation": "isDerivedFrom"} for doi in dois
            ],
        }
    }


if __name__ == "__main__":
    make(Path(sys.argv[1]), *sys.argv[2:4])
