"""The record of a run: what is written is read again, and anything else is refused."""

import json
import re
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from leuko.errors import LeukoError
from leuko.io.provenance import ranked
from leuko.io.record import VERSION, FileRecord, RunRecord, as_json
from reports import a_head, a_record, finding

PAGE = Path(__file__).parents[2] / "docs" / "record.md"
RECORD = a_record(*a_head(), findings=(finding("cut off"),))
REQUIRED = [field.name for field in fields(RunRecord) if field.default is MISSING]
OPTIONAL = [
    name for name, hint in get_type_hints(RunRecord).items() if type(None) in get_args(hint)
]


def names_of(kind, before=""):
    """The fields of a record, those of its parts included, as `settings.exclude.path`."""
    for name, hint in get_type_hints(kind).items():
        yield before + name
        for part in (hint, *get_args(hint)):
            if is_dataclass(part):
                yield from names_of(part, f"{before}{name}.")


@pytest.mark.parametrize(
    "record",
    [
        RECORD,
        replace(RECORD, **dict.fromkeys(OPTIONAL)),
        replace(RECORD, inputs=replace(RECORD.inputs, t1=None, mask=RECORD.inputs.flair)),
        replace(
            RECORD,
            settings=replace(
                RECORD.settings,
                exclude=FileRecord(path="\udcff", sha256="", bytes=1, modified_ns=2),
            ),
        ),
    ],
    ids=["whole", "unknown values", "measured", "excluded"],
)
def test_a_record_that_was_written_is_read_as_it_was(record, tmp_path):
    record.write(tmp_path / "run.json")
    assert RunRecord.read(tmp_path / "run.json") == record


def test_the_json_has_the_names_of_the_fields_and_the_version_first(tmp_path):
    RECORD.write(tmp_path / "run.json")
    written = json.loads((tmp_path / "run.json").read_text())
    assert list(written) == ["record_version", *REQUIRED]
    assert next(iter(written.items())) == ("record_version", VERSION)
    assert written["inputs"]["flair"] == {
        "path": "/scans/anna/FLAIR.nii.gz", "sha256": "ab" * 32, "series": None,
    }  # fmt: skip
    assert "mask" not in written["inputs"]
    assert written["excluded_ml"] is None
    assert written["findings"] == [{"level": "warning", "code": "cut-off", "text": "cut off"}]


def written(folder, **changes):
    """A record in JSON, changed so; without the fields that are changed to `...`."""
    content = as_json(RECORD) | changes
    path = folder / "run.json"
    path.write_text(json.dumps({name: v for name, v in content.items() if v is not ...}))
    return path


@pytest.mark.parametrize("name", REQUIRED[1:])
def test_a_record_that_lacks_a_field_is_damaged_and_the_field_is_named(name, tmp_path):
    with pytest.raises(LeukoError, match=rf"run\.json is damaged: .*`{name}`; segment its scans"):
        RunRecord.read(written(tmp_path, **{name: ...}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"volume_ml": "1.0"}, "volume_ml"),
        ({"lesions": 1.5}, "lesions"),
        ({"volume_interval_ml": [1.0]}, "volume_interval_ml"),
        ({"rims": "both"}, "rims"),
        ({"inputs": {}}, "inputs"),
        ({"findings": ["cut off"]}, "findings"),
        ({"regions": {"rule": "voxel10"}}, "regions"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_value_is_damage_and_its_place_is_named(changes, said, tmp_path):
    with pytest.raises(LeukoError, match=rf"run\.json is damaged: .*\$\.{said}"):
        RunRecord.read(written(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"record_version": VERSION + 1}, "newer Leuko: its record has version 2, .* version 1"),
        ({"record_version": ...}, "older Leuko; segment its scans again"),
        ({"record_version": 0}, "older Leuko; segment its scans again"),
        ({"record_version": "1"}, "older Leuko; segment its scans again"),
        ({"command": "train"}, "not written by leuko segment"),
        ({"command": ["segment"]}, "not written by leuko segment"),
        ({"command": ...}, "not written by leuko segment"),
    ],
)
def test_a_record_of_another_version_or_command_is_refused(changes, said, tmp_path):
    with pytest.raises(LeukoError, match=said):
        RunRecord.read(written(tmp_path, **changes))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"command": "segm'])
def test_a_file_that_is_no_record_is_refused(content, tmp_path):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(LeukoError, match=r"run\.json"):
        RunRecord.read(tmp_path / "run.json")
    with pytest.raises(LeukoError, match="cannot be read"):
        RunRecord.read(tmp_path / "none.json")


def test_the_most_serious_findings_come_first():
    found = [finding("a", "note"), finding("b"), finding("c", "do not use"), finding("d")]
    assert [f.text for f in ranked(found)] == ["c", "b", "d", "a"]


def test_the_page_of_the_record_explains_each_field_once():
    page = PAGE.read_text(encoding="utf-8").split("## The record of a comparison")[0]
    rows = re.findall(r"^\| (`.*?`) \|", page, re.MULTILINE)
    explained = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    names = {re.sub(r"^inputs\.\w+\.", "inputs.*.", name) for name in names_of(RunRecord)}
    assert sorted(explained) == sorted(names)
    assert f"`record_version` is {VERSION}." in page
