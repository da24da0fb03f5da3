"""The table of a batch: what it may hold, and what it is told for."""

import pytest

from leuko.cohort.subject_table import read_table
from leuko.errors import LeukoError


def rows(tmp_path, text, name="pairs.tsv", encoding="utf-8"):
    path = tmp_path / name
    path.write_text(text, encoding=encoding)
    return read_table(path)


def test_paths_are_relative_to_the_table(tmp_path):
    (row,) = rows(tmp_path, "id\tflair\tt1\nanna\tscans/F.nii.gz\t/data/T1.nii.gz\n")
    assert row.name == "anna"
    assert row.flair == tmp_path / "scans" / "F.nii.gz"
    assert str(row.t1) == "/data/T1.nii.gz"
    assert row.exclude is None


@pytest.mark.parametrize("cell", ["", "n/a", " "])
def test_an_empty_cell_is_no_t1(tmp_path, cell):
    (row,) = rows(tmp_path, f"flair\tt1\tid\nF.nii.gz\t{cell}\tanna\n")
    assert row.t1 is None


def test_the_order_of_columns_is_free_and_empty_lines_do_not_count(tmp_path):
    text = "T1\tID\tFLAIR\texclude\na\t1\tb\tc\n\n\t\t\t\nd\t2\te\t\n"
    assert [(r.name, r.flair.name, r.t1.name) for r in rows(tmp_path, text)] == [
        ("1", "b", "a"),
        ("2", "e", "d"),
    ]


def test_commas_and_what_spreadsheets_write_are_understood(tmp_path):
    text = 'id,flair\r\nanna,"my scans, all/F.nii.gz"\r\n'
    (row,) = rows(tmp_path, text, name="pairs.csv", encoding="utf-8-sig")
    assert row.flair == tmp_path / "my scans, all" / "F.nii.gz"


def test_semicolons_of_a_csv_are_understood_and_other_columns_named(tmp_path, caplog):
    (row,) = rows(tmp_path, "id;flair;age\nanna;my, F.nii;70\n", name="pairs.csv")
    assert row.flair.name == "my, F.nii"
    assert "pairs.csv: columns not used: age" in caplog.text


def test_a_quote_in_a_tsv_swallows_nothing(tmp_path):
    found = rows(tmp_path, 'id\tflair\na\t"x\nb\ty\nc\tz"\n')
    assert [(row.name, row.flair.name) for row in found] == [("a", '"x'), ("b", "y"), ("c", 'z"')]


def test_a_csv_whose_quotes_or_commas_do_not_fit_is_refused(tmp_path):
    with pytest.raises(LeukoError, match="cannot be read: unexpected end of data"):
        rows(tmp_path, 'id,flair\na,"x\nb,y\n', name="pairs.csv")
    with pytest.raises(LeukoError, match="put a cell that contains a comma in quotes"):
        rows(tmp_path, "id,flair,t1\na,my scans, all/F.nii,T.nii\n", name="pairs.csv")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has the columns (none); expected id, flair and"),
        ("id,flair\na,b\n", "has the columns id,flair; expected"),
        ("ID\tscan\na\tb\n", "has the columns ID | scan; expected id, flair"),
        ("id\tflair\tflair\na\tb\tc\n", "expected id, flair"),
        ("id\tflair\n", "lists no subject"),
        ("id\tflair\na\tx\nA\ty\n", "line 3: the id A is not unique"),
        ("id\tflair\n../a\tx\n", "line 2: the id '../a' cannot be the name of a folder"),
        ("id\tflair\n\tx\n", "the id '' cannot be the name of a folder"),
        ("id\tflair\nlogs\tx\n", "the id 'logs' is reserved"),
        ("id\tflair\nVerdicts\tx\n", "the id 'Verdicts' is reserved"),
        ("id\tflair\nreport.html\tx\n", "the id 'report.html' is reserved"),
        ("id\tflair\nnul\tx\n", "the id 'nul' is reserved"),
        ("id\tflair\na.\tx\n", "the id 'a.' cannot be the name of a folder"),
        ("id\tflair\na\tx\ty\n", "line 2: 3 cells, expected 2"),
        ("id\tflair\nanna\t\n", "line 2: anna has no FLAIR"),
        ("id\tflair\nanna\n", "line 2: anna has no FLAIR"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_with_the_line(tmp_path, text, said):
    with pytest.raises(LeukoError) as told:
        rows(tmp_path, text)
    assert said in str(told.value)
    assert "pairs.tsv" in str(told.value)


def test_no_table_and_no_text_are_told_apart(tmp_path):
    with pytest.raises(LeukoError, match="cannot be read: No such file"):
        read_table(tmp_path / "absent.tsv")
    (tmp_path / "latin.tsv").write_bytes("id\tflair\nJürgen\tx\n".encode("latin-1"))
    with pytest.raises(LeukoError, match="is not UTF-8 text"):
        read_table(tmp_path / "latin.tsv")
