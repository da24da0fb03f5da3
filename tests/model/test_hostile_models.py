"""Models from strangers: whatever their files hold, no code runs and no other file is read."""

import ast
import gzip
import json
import os
import pickle
import stat
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.numpy
from onnx import TensorProto, helper

import leuko
from conftest import assert_one_line_error
from leuko.errors import LeukoError
from leuko.model import runtime
from leuko.model.card import CARD_FILE, ONNX_FILE, WEIGHTS_FILE, load_card, save_card
from leuko.model.onnx_export import read_network
from leuko.model.weights import pull
from leuko.training import storage
from phantoms import SMALL_MODEL
from test_hostile import watched

SECRET = bytes(range(48))


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def model(tmp_path):
    """Makes a model folder with these weights, under a card with their right hash."""

    def make(content, weights, **changes):
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        (folder / weights).write_bytes(content)
        card = load_card(SMALL_MODEL)
        save_card(folder, replace(card, **{"weights": weights, **changes}))
        return folder

    return make


def tensors(header, data=b""):
    """The bytes of a safetensors file."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(**changes):
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


SAFETENSORS = {
    "empty": b"",
    "a header of 8 EiB": struct.pack("<Q", 2**63 - 1) + b"{}",
    "a header longer than the file": struct.pack("<Q", 1000) + b"{}",
    "no JSON": tensors(b"\xff\xfe{["),
    "deep JSON": tensors(b"[" * 100_000),
    "tensors outside of the file": tensors(tensor(data_offsets=[0, 2**40]), bytes(8)),
    "offsets backwards": tensors(tensor(data_offsets=[8, 0]), bytes(8)),
    "a shape of 16 TB": tensors(tensor(shape=[2**42]), bytes(8)),
    "a shape that overflows": tensors(tensor(shape=[2**40, 2**40]), bytes(8)),
    "an unknown type": tensors(tensor(dtype="PYTHON"), bytes(8)),
    "another network": safetensors.numpy.save({"a": np.zeros(2, np.float32)}),
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_hostile_safetensors_are_refused(model, tmp_path, name):
    folder = model(SAFETENSORS[name], WEIGHTS_FILE)
    with watched(64 << 20), pytest.raises(LeukoError, match="do not fit its card"):
        read_network(folder, load_card(folder))
    path = tmp_path / "weights.safetensors"
    path.write_bytes(SAFETENSORS[name])
    with watched(64 << 20), pytest.raises(LeukoError, match="does not contain the weights"):
        storage.read_weights(str(path))


@pytest.mark.parametrize("weights", [WEIGHTS_FILE, ONNX_FILE])
def test_a_pickle_in_place_of_weights_is_not_run(leuko, model, head, tmp_path, weights):
    folder = model(pickle.dumps(Payload(tmp_path / "ran")), weights)
    scans = "--flair", head / "FLAIR.nii.gz", "--t1", head / "T1.nii.gz"
    answer = leuko("segment", *scans, "--model", folder, "-o", tmp_path / "out")
    assert_one_line_error(answer, folder)
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


def test_the_payload_of_these_tests_would_run(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))  # noqa: S301, that is the point
    assert (tmp_path / "ran").is_dir()


@pytest.fixture
def head(heads):
    return heads / "head0"


def graph(*, nodes=(), constants=(), domain="", functions=()):
    """An ONNX file with the inputs and outputs of Leuko's models, and these parts."""
    classes = len(load_card(SMALL_MODEL).classes)
    given = helper.make_tensor_value_info("slices", TensorProto.UINT8, ["n", "h", "w", 3])
    shape = ["n", classes, "h", "w"]
    found = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, shape)
    made = helper.make_graph(list(nodes), "g", [given], [found], list(constants))
    opsets = [helper.make_opsetid("", 17)]
    opsets += [helper.make_opsetid(domain, 1)] if domain else []
    return helper.make_model(
        made, opset_imports=opsets, ir_version=8, functions=list(functions)
    ).SerializeToString()


def elsewhere(location):
    """A constant whose values are in another file."""
    constant = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[12])
    constant.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": "48"}.items():
        constant.external_data.add(key=key, value=value)
    return graph(
        nodes=[helper.make_node("Identity", ["w"], ["probabilities"])], constants=[constant]
    )


@pytest.mark.parametrize(
    "place", ["../secret", "{}/secret", "/dev/zero", "link", "a/../../secret", "inside"]
)
def test_onnx_cannot_read_other_files(model, tmp_path, place):
    (tmp_path / "secret").write_bytes(SECRET)
    folder = model(elsewhere(place.format(tmp_path)), ONNX_FILE)
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "a").mkdir()
    (folder / "inside").write_bytes(SECRET)
    with watched(64 << 20), pytest.raises(LeukoError, match="refers to other files"):
        runtime.load(folder)
    with watched(64 << 20), pytest.raises(LeukoError, match="do not fit its card"):
        read_network(folder, load_card(folder))


def test_onnx_cannot_bring_operators_of_its_own(model, tmp_path):
    node = helper.make_node("Run", ["slices"], ["probabilities"], domain="evil", path="/bin/sh")
    folder = model(graph(nodes=[node], domain="evil"), ONNX_FILE)
    (folder / "evil.so").write_bytes(b"\x7fELF")
    with pytest.raises(LeukoError, match="cannot be loaded by onnxruntime"):
        runtime.load(folder)
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 64, b"\x08\xff\xff\xff\xff", b"not a model", SECRET * 100],
    ids=["empty", "zeros", "cut", "text", "noise"],
)
def test_damaged_onnx_is_refused(model, content):
    folder = model(content, ONNX_FILE)
    with watched(64 << 20), pytest.raises(LeukoError, match=r"onnxruntime|fit its card"):
        runtime.load(folder)


def test_onnx_that_wants_all_memory_is_refused(model):
    shape = helper.make_tensor("shape", TensorProto.INT64, [1], [2**45])
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["much"]),
        helper.make_node("Identity", ["much"], ["probabilities"]),
    ]
    folder = model(graph(nodes=nodes, constants=[shape]), ONNX_FILE)
    with watched(64 << 20), pytest.raises(LeukoError, match=r"onnxruntime|fit its card"):
        runtime.load(folder)


@pytest.mark.parametrize("weights", [WEIGHTS_FILE, ONNX_FILE])
def test_a_card_that_describes_a_giant_network_is_refused_before_it_is_built(model, weights):
    content = onnx.load(SMALL_MODEL / ONNX_FILE).SerializeToString()
    folder = model(content, weights, stages=((4096,) * 8,) * 5)
    with watched(64 << 20), pytest.raises(LeukoError, match="do not fit its card"):
        read_network(folder, load_card(folder))


def test_a_bomb_of_weights_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "LARGEST_BYTES", 1 << 20)
    path = tmp_path / "bomb.safetensors.gz"
    path.write_bytes(gzip.compress(bytes(64 << 20)))
    with watched(16 << 20), pytest.raises(LeukoError, match="holds more than 1 MB, the limit"):
        storage.read_weights(str(path))


def test_a_link_in_an_archive_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setenv("LEUKO_CACHE", str(tmp_path / "cache"))
    archive = tmp_path / "model.zip"
    link = zipfile.ZipInfo(CARD_FILE)
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr(link, str(SMALL_MODEL / CARD_FILE))
        content.write(SMALL_MODEL / ONNX_FILE, ONNX_FILE)
    with pytest.raises(LeukoError, match="is not valid JSON"):
        pull(str(archive))


def test_nothing_that_can_run_code_reads_a_file():
    """No pickles, no evaluation of text, no shells."""
    for path in Path(leuko.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported = {alias.name.split(".")[0] for alias in node.names}
                assert not imported & {"pickle", "marshal", "shelve", "dill", "joblib"}, path
            if not isinstance(node, ast.Call):
                continue
            name, said = ast.unparse(node.func), ast.unparse(node)
            assert name not in ("eval", "exec", "os.system", "os.popen", "yaml.load"), said
            assert name != "torch.load" or "weights_only=True" in said, said
            assert "allow_pickle" not in said, said
            assert "shell=True" not in said, said
