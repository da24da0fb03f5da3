"""Writes docs/api.md: the public names of `import leuko`, from their signatures and docstrings."""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import leuko

ORDER = (
    "segment", "Segmentation", "SegmentSettings", "load_model", "measure", "compare", "evaluate",
    "segment_cohort", "LeukoError",
)  # fmt: skip


def page() -> str:
    """The page as Markdown."""
    parts = [
        "# Python interface",
        "",
        "Made by `python docs/make_api.py` from the package. A scan (`Image`) is the path of an",
        "image or of a folder with one DICOM series, as `str` or `Path`, or a nibabel image in",
        "memory. `leuko.__version__` is the version.",
        "",
        *(f"- [`leuko.{name}`](#leuko{name.lower()})" for name in ORDER),
    ]
    for name in ORDER:
        thing = getattr(leuko, name)
        parts += ["", f"## leuko.{name}", "", *described(thing)]
        if inspect.isclass(thing):
            for member, value in public_members(thing):
                parts += ["", f"### {name}.{member}", "", *described(value)]
    return "\n".join(parts) + "\n"


def public_members(kind: type) -> Iterator[tuple[str, Any]]:
    """The methods and properties that a class adds, in the order of its source."""
    for name, value in vars(kind).items():
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
            yield name, value


def described(thing: Any) -> list[str]:
    """Declaration and docstring of one name."""
    prose, *example = re.split(r"\n(?=>>> )", inspect.getdoc(thing) or "", maxsplit=1)
    parts = ["```text", *declaration(thing), "```", "", prose.strip()]
    if example:
        parts += ["", "```pycon", *example[0].rstrip().splitlines(), "```"]
    return parts


def declaration(thing: Any) -> list[str]:
    """The lines of its source that declare it: a signature, or a class with its fields."""
    lines = textwrap.dedent(inspect.getsource(thing.fget if isinstance(thing, property) else thing))
    (node,) = ast.parse(lines).body
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    source, docstring, *rest = lines.splitlines(), node.body[0], *node.body[1:]
    head = source[node.lineno - 1 : docstring.lineno - 1]
    fields = [part for part in rest if isinstance(part, ast.AnnAssign)]
    if fields:
        head += source[docstring.end_lineno : fields[-1].end_lineno]
    return [line for line in head if line.strip()]


if __name__ == "__main__":
    (Path(__file__).parent / "api.md").write_text(page(), encoding="utf-8")
