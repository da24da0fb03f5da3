"""The command info: what a bug report should say about Leuko and the machine it runs on.

Each fact is found on its own, since a library that cannot be loaded may be the problem to report.
"""

import getpass
import importlib
import json
import os
import platform
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from leuko.cli.text import counted
from leuko.errors import LeukoError, in_one_line

EXTRAS = ("demo", "dicom", "cohort", "train")
IMPORTED_AS = {"pillow": "PIL", "simpleitk": "SimpleITK"}  # if not by the name of the package
# Instructions that make the network faster, under the names that Linux gives them.
X86 = {
    "AVX2": {"avx2"},
    "AVX-512": {"avx512f"},
    "VNNI": {"avx512_vnni", "avx_vnni"},
    "AMX": {"amx_int8"},
    "bf16": {"avx512_bf16", "amx_bf16"},
}
ARM = {"dot products": {"asimddp"}, "matrix products": {"i8mm"}, "bf16": {"bf16"}}
BATCH_GB = 4.0  # default of `leuko batch --mem-gb`
WIDTH, INDENT = 80, 12
NO_BREAK = "\N{NO-BREAK SPACE}"


def info(
    run: Annotated[
        Path | None,
        typer.Argument(
            help="With --citation: folder or run.json of a result; by default the bundled model."
        ),
    ] = None,
    *,
    as_citation: Annotated[
        bool,
        typer.Option("--citation", help="Print a paragraph for the methods section of a paper."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
    devices: Annotated[
        bool, typer.Option("--devices", help="Load PyTorch to list its GPUs; takes seconds.")
    ] = False,
) -> None:
    """Describe this installation, for a bug report.

    Prints versions, the model, the processor, memory, extras, and what makes Leuko slow here.
    Your user name is left out. With --citation, it prints the method and its references instead.
    """
    if as_citation:
        from leuko.report.citation import citation

        print(citation(run))
        return
    if run is not None:
        raise LeukoError("a result needs --citation; add it, or give no result")
    found = without_names(facts(devices=devices))
    print(json.dumps(found, indent=2) if as_json else as_text(found))


def facts(*, devices: bool = False) -> dict[str, Any]:
    """What is known about this installation; a text that starts with "unknown" where finding it
    failed. `devices` loads PyTorch."""
    found = {
        "leuko": _known(lambda: metadata.version("leuko")),
        "model": _known(_model),
        "python": f"{platform.python_version()} in {sys.prefix}",
        "system": platform.platform(),
        "processor": _known(_processor),
        "memory_gb": _known(_memory_gb),
        "libraries": _known(_libraries),
        "extras": _known(lambda: {extra: _missing(extra) for extra in EXTRAS}),
        "gpus": _known(lambda: _gpus(look=devices)),
        "cache": _known(_cache),
    }
    return found | {"notes": list(_notes(found))}


def as_text(found: Mapping[str, Any]) -> str:
    """The facts, one or several lines each, ready to paste."""
    rows = []
    for name, value in found.items():
        is_known = name in LINES and not isinstance(value, str)
        title = {"memory_gb": "memory"}.get(name, name)
        for line in LINES[name](value) if is_known else [str(value)]:
            whole = line.replace("pip install ", f"pip{NO_BREAK}install{NO_BREAK}")
            for part in textwrap.wrap(
                whole, WIDTH - INDENT, break_long_words=False, break_on_hyphens=False
            ):
                rows.append(f"{title:<{INDENT}}{part.replace(NO_BREAK, ' ')}")
                title = ""
    return "\n".join(rows)


# The lines that tell a fact of this name.
LINES: dict[str, Callable[[Any], list[str]]] = {
    "model": lambda model: [
        f"{model['name']}, {model['weights']}, SHA-256 {model['sha256'][:12]}",
        model["folder"],
    ],
    "processor": lambda processor: [
        f"{processor['name']} ({processor['machine']})",
        f"{processor['count']} processors, Leuko uses {processor['threads']}",
        ", ".join(f"{k} {'yes' if v else 'no'}" for k, v in processor["instructions"].items()),
    ],
    "memory_gb": lambda size: [f"{size:.1f} GB"],
    "libraries": lambda versions: [", ".join(f"{k} {v}" for k, v in versions.items())],
    "extras": lambda missing: [f"{k}: {v or 'installed'}" for k, v in missing.items()],
    "gpus": lambda names: [", ".join(names) or "none"],
    "cache": lambda cache: [
        f"{cache['folder']}: {counted(len(cache['models']), 'model')}, {cache['mb']:.1f} MB"
    ],
    "notes": list,
}


def without_names(value: Any) -> Any:
    """The value with ~ for the home folder and USER for the user's name in all its texts."""
    if isinstance(value, Mapping):
        return {key: without_names(inside) for key, inside in value.items()}
    if isinstance(value, list):
        return [without_names(inside) for inside in value]
    if not isinstance(value, str):
        return value
    with suppress(RuntimeError):  # there may be no home folder
        home = Path.home()
        if home != Path(home.anchor):
            value = re.sub(rf"{re.escape(str(home))}(?=[/\\]|\W|$)", "~", value)
    with suppress(OSError, KeyError, ImportError):  # nor a name, as in a container
        user = re.escape(getpass.getuser())
        value = re.sub(rf"(?<=[/\\]){user}(?=[/\\]|$)", "USER", value)
    return value


def _known(find: Callable[[], Any]) -> Any:
    try:
        return find()
    except Exception as error:  # noqa: BLE001, whatever it is belongs into the report
        return f"unknown: {type(error).__name__}: {in_one_line(error)}"


def _model() -> dict[str, str]:
    from leuko.model.card import load_card
    from leuko.model.weights import DEFAULT, find

    folder = find(DEFAULT)
    card = load_card(folder)  # checks the hash
    return {
        "name": card.name,
        "sha256": card.weights_sha256,
        "weights": card.weights,
        "folder": str(folder),
    }


def _processor() -> dict[str, Any]:
    from archspec import cpu
    from archspec.cpu.detect import detected_info

    machine = platform.machine()
    # A virtual machine may hide some: `detected_info` has all that it shows, `host` those that
    # macOS does not list.
    seen = detected_info().features | cpu.host().features
    wanted = X86 if machine.lower() in ("x86_64", "amd64") else ARM
    return {
        "name": cpu.brand_string() or platform.processor() or "unknown",
        "machine": machine,
        "count": os.cpu_count(),
        "threads": _known(_threads),
        "instructions": {name: bool(flags & seen) for name, flags in wanted.items()},
    }


def _threads() -> int:
    from leuko.model.runtime import available_cpus

    return available_cpus()


def _memory_gb() -> float:
    """Memory of the machine or of the container, in 1e9 bytes."""
    try:
        import psutil

        size = int(psutil.virtual_memory().total)
    except ImportError:
        if not hasattr(os, "sysconf"):
            raise LeukoError('psutil not installed; pip install "leuko[cohort]"') from None
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # no such file, or no limit ("max")
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")
        size = min(size, int(limit))
    return round(size / 1e9, 1)


def _libraries() -> dict[str, str]:
    """The version of each library that Leuko always needs, and why it cannot be loaded."""
    found = {}
    for name in _required():
        found[name] = _known(partial(metadata.version, name))
        try:
            importlib.import_module(IMPORTED_AS.get(name.lower(), name))
        except Exception as error:  # noqa: BLE001, a broken library may raise anything
            found[name] += f" (cannot be loaded: {in_one_line(error)})"
    return found


def _missing(extra: str) -> str | None:
    """What an extra lacks, and how to install it; None if it is there."""
    missing = [name for name in _required(extra) if not list(metadata.distributions(name=name))]
    return f'no {", ".join(missing)}; pip install "leuko[{extra}]"' if missing else None


def _required(extra: str | None = None) -> list[str]:
    """The packages that Leuko needs, or those of an extra."""
    found = []
    for line in metadata.requires("leuko") or []:
        of_extra = re.search(r"extra == ['\"](\w+)", line)
        if (of_extra and of_extra[1]) == extra:
            found += re.findall(r"^[\w.-]+", line)
    return found


def _gpus(*, look: bool) -> list[str] | str:
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return "not used: PyTorch is not installed"
    if not look:
        return f"not looked for without --devices (PyTorch {version})"
    import torch

    cuda = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return cuda + ["mps"] * torch.backends.mps.is_available()


def _cache() -> dict[str, Any]:
    from leuko.model.weights import cache_folder

    folder = cache_folder()
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return {
        "folder": str(folder),
        "models": sorted(path.name for path in folder.glob("*") if path.is_dir()),
        "mb": round(sum(sizes) / 1e6, 1),
    }


def _notes(found: Mapping[str, Any]) -> Iterator[str]:
    """What makes Leuko slow here, and what to do."""
    processor = found["processor"]
    if isinstance(processor, Mapping):
        count, threads = processor["count"], processor["threads"]
        products = "VNNI" if "VNNI" in processor["instructions"] else "dot products"
        if not processor["instructions"][products]:
            yield (
                f"the processor has no instructions for products of 8-bit numbers ({products}), "
                "so the network takes longer than on newer ones"
            )
        if isinstance(threads, int) and count and threads < count:
            yield (
                f"Leuko can use {threads} of {count} processors, because of limits of this process "
                "or container; more make it faster"
            )
        if processor["machine"] == "x86_64" and "Apple" in processor["name"]:
            yield "Python runs in emulation (Rosetta); an arm64 Python is faster"
    if isinstance(found["memory_gb"], float) and found["memory_gb"] < BATCH_GB:
        yield (
            f"this machine has {found['memory_gb']:g} GB of memory, but leuko batch and bids allow "
            f"each subject {BATCH_GB:g} GB by default; lower --mem-gb"
        )
