"""What `leuko info` tells about an installation, and what it keeps to itself."""

import json
import os
import platform
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import archspec.cpu
import archspec.cpu.detect
import psutil
import pytest
import torch

from leuko.cli import info
from leuko.model import runtime
from leuko.model.card import load_card
from leuko.model.weights import find

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture
def told(leuko):
    """What the command prints as JSON."""

    def run(*options):
        code, out, err = leuko("info", "--json", *options)
        assert (code, err) == (0, "")
        return json.loads(out)

    return run


@pytest.fixture
def processor(monkeypatch):
    """Lets the machine have a processor with these instructions."""

    def make(*flags, machine="x86_64", name="a processor"):
        seen = SimpleNamespace(features=set(flags))
        monkeypatch.setattr(archspec.cpu.detect, "detected_info", lambda: seen)
        monkeypatch.setattr(archspec.cpu, "host", lambda: seen)
        monkeypatch.setattr(archspec.cpu, "brand_string", lambda: name)
        monkeypatch.setattr(platform, "machine", lambda: machine)
        monkeypatch.setattr(info.os, "cpu_count", runtime.available_cpus)

    return make


def test_it_names_versions_and_the_model(told):
    found = told()
    card = load_card(find("leuko-base"))
    assert found["leuko"] == metadata.version("leuko")
    assert found["model"]["sha256"] == card.weights_sha256
    assert found["python"].startswith(platform.python_version())
    assert found["libraries"]["numpy"] == metadata.version("numpy")
    assert not [text for text in found["libraries"].values() if "cannot be loaded" in text]
    assert "unknown" not in json.dumps(found)


def test_the_lines_hold_the_same_facts_as_the_json_and_fit_the_terminal(leuko, told):
    found = told()
    _, out, _ = leuko("info")
    for text in (found["model"]["sha256"][:12], found["system"], found["processor"]["name"]):
        assert text in out
    names = re.findall(r"^\S+", out, re.MULTILINE)
    assert names[:5] == ["leuko", "model", "python", "system", "processor"]
    assert max(map(len, out.splitlines())) <= info.WIDTH or found["model"]["folder"] in out


def test_commands_are_not_broken_over_lines():
    missing = 'no distributed, psutil and one more library; pip install "leuko[cohort]"'
    lines = info.as_text({"extras": {"cohort": missing}}).splitlines()
    assert lines[-1].strip() == 'pip install "leuko[cohort]"'


def test_neither_home_nor_user_are_told(told, tmp_path, monkeypatch):
    home = tmp_path / "anna"
    monkeypatch.setattr(Path, "home", lambda: home)
    monkeypatch.setenv("LOGNAME", "anna")
    monkeypatch.setenv("LEUKO_CACHE", str(home / "cache"))
    assert told()["cache"]["folder"] == str(Path("~", "cache", "models"))
    monkeypatch.setenv("LEUKO_CACHE", str(Path("/scratch", "anna", "cache")))
    assert told()["cache"]["folder"] == str(Path("/scratch", "USER", "cache", "models"))


@pytest.mark.parametrize("home", ["/", "C:\\"])
def test_a_root_folder_as_home_leaves_paths_readable(monkeypatch, home):
    monkeypatch.setattr(Path, "home", lambda: Path(home) if home == "/" else Path("/nowhere"))
    assert info.without_names({"a": ["/opt/leuko/bin", 1]}) == {"a": ["/opt/leuko/bin", 1]}


def test_a_machine_without_home_and_user_is_described(told, monkeypatch):
    def none():
        raise RuntimeError("Could not determine home directory.")

    def nobody():
        raise KeyError("uid not found")

    monkeypatch.setattr(Path, "home", none)
    monkeypatch.setattr(info.getpass, "getuser", nobody)
    assert told()["leuko"] == metadata.version("leuko")


def test_a_library_that_cannot_be_loaded_is_told_and_the_rest_as_well():
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from leuko.cli import main\n"
        "main(['info', '--json'])"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    assert "cannot be loaded: import of onnxruntime halted" in found["libraries"]["onnxruntime"]
    assert found["processor"]["threads"].startswith("unknown: ModuleNotFoundError")
    assert found["model"]["name"] == "leuko-base"


@pytest.mark.parametrize(
    ("flags", "machine", "there"),
    [
        (("avx2",), "x86_64", {"AVX2"}),
        (("avx2", "avx_vnni"), "AMD64", {"AVX2", "VNNI"}),
        (("avx512f", "avx512_vnni", "avx512_bf16"), "x86_64", {"AVX-512", "VNNI", "bf16"}),
        (("amx_int8", "amx_bf16"), "x86_64", {"AMX", "bf16"}),
        (("asimddp",), "arm64", {"dot products"}),
        (("asimddp", "i8mm", "bf16"), "aarch64", {"dot products", "matrix products", "bf16"}),
    ],
)
def test_the_instructions_of_the_processor_are_told(told, processor, flags, machine, there):
    processor(*flags, machine=machine)
    instructions = told()["processor"]["instructions"]
    assert {name for name, has in instructions.items() if has} == there


@pytest.mark.parametrize(("machine", "word"), [("x86_64", "VNNI"), ("aarch64", "dot products")])
def test_a_processor_without_products_of_8_bits_is_slow(told, processor, machine, word):
    processor("avx2", machine=machine)
    (note,) = told()["notes"]
    assert word in note
    assert "the network takes longer" in note


def test_emulation_is_slow(told, processor):
    processor("avx2", "avx_vnni", name="Apple M3")
    (note,) = told()["notes"]
    assert "Rosetta" in note


def test_a_limit_of_processors_is_slow(told, processor, monkeypatch):
    processor("avx_vnni")
    monkeypatch.setattr(info.os, "cpu_count", lambda: 64)
    monkeypatch.setattr(runtime, "available_cpus", lambda: 2)
    (note,) = told()["notes"]
    assert "2 of 64 processors" in note


def test_little_memory_is_told_with_what_to_do(told, processor, monkeypatch):
    processor("avx_vnni")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=2_000_000_000))
    found = told()
    assert found["memory_gb"] == 2.0
    (note,) = found["notes"]
    assert note == (
        "this machine has 2 GB of memory, but leuko batch and bids allow each subject 4 GB by "
        "default; lower --mem-gb"
    )


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="without psutil it is unknown on Windows")
def test_memory_is_known_without_psutil(monkeypatch):
    whole = info._memory_gb()
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert info._memory_gb() == pytest.approx(whole, abs=0.2)


def test_a_containers_memory_is_its_limit(monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "1500000000\n")
    assert info._memory_gb() == 1.5


def test_missing_extras_are_told_with_the_command(told, monkeypatch):
    def distributions(*, name):
        return [] if name == "psutil" else [name]

    monkeypatch.setattr(metadata, "distributions", distributions)
    assert told()["extras"] == {
        "demo": None,
        "dicom": None,
        "cohort": 'no psutil; pip install "leuko[cohort]"',
        "train": None,
    }


def test_the_extras_are_those_of_the_package():
    assert set(info.EXTRAS) <= set(PROJECT["project"]["optional-dependencies"])


def test_requirements_are_told_apart_by_their_extra(monkeypatch):
    lines = ["numpy>=1.26", "psutil>=5.9; extra == 'cohort'", 'torch>=2 ; extra == "train"']
    monkeypatch.setattr(metadata, "requires", lambda _: lines)
    assert info._required() == ["numpy"]
    assert info._required("cohort") == ["psutil"]
    assert info._required("train") == ["torch"]


def test_pytorch_is_loaded_only_when_its_devices_are_asked_for(leuko, monkeypatch):
    code = (
        "import sys\n"
        "from leuko.cli import main\n"
        "try:\n    main(['info'])\nexcept SystemExit:\n    pass\n"
        "print('torch' in sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)  # noqa: PLW1510
    assert process.stdout.splitlines()[-1] == "False", process.stderr
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"GPU {number}")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    _, out, _ = leuko("info", "--devices")
    assert "\ngpus        GPU 0, GPU 1\n" in out


def test_pulled_models_are_counted(told, tmp_path, monkeypatch):
    monkeypatch.setenv("LEUKO_CACHE", str(tmp_path))
    assert told()["cache"]["models"] == []
    (tmp_path / "models" / "other").mkdir(parents=True)
    (tmp_path / "models" / "other" / "model.onnx").write_bytes(bytes(2_500_000))
    assert told()["cache"] | {"folder": ""} == {"folder": "", "models": ["other"], "mb": 2.5}


def test_the_method_is_told_for_a_paper(leuko, heads, model, tmp_path):
    head, out = heads / "head0", tmp_path / "out"
    scans = ["--flair", head / "FLAIR.nii.gz", "--t1", head / "T1.nii.gz"]
    leuko("segment", *scans, "--model", model, "-o", out)
    code, of_run, _ = leuko("info", out, "--citation")
    assert code == 0
    assert "were segmented on FLAIR and T1 with Leuko 0.1.0" in of_run
    assert "doi:10.1007/978-3-319-75238-9_42" in of_run
    assert "its model leuko-base" in leuko("info", "--citation")[1]
    assert leuko("info", out)[::2] == (
        2,
        "error: a result needs --citation; add it, or give no result\n",
    )
