"""Exports a trained network to an 8-bit ONNX file, and reads the network back.

The only module that uses onnx. The ONNX model takes slices from `prepare`, uint8 (N, H, W, 3), and
returns probabilities, float32 (N, C, H, W), for any N and for H and W that are multiples of 16.
The fusion stays in float: it costs little time, and its sum decides the class.
"""

import io
import logging
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper
from onnx.checker import ValidationError
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from safetensors import SafetensorError
from safetensors.torch import load_file

from leuko.errors import LeukoError
from leuko.io.files import staged
from leuko.model.card import ONNX_FILE, WEIGHTS_FILE, ModelCard, load_card, save_card
from leuko.model.network import SpecialisedVGG
from leuko.model.quantisation import rounded
from leuko.preprocessing.slices import centred
from leuko.volume import Array

OPSET = 17
# Calibration keeps the maps of all slices in memory at once, so slices are cropped to this size.
CALIBRATION_SLICES, CALIBRATION_PIXELS = 32, 160
# Values above this percentile are clipped: rare peaks would coarsen the steps of all others.
PERCENTILE = 99.999
LARGEST = 64  # limit of integer weights, for 7 bits


def export(model: Path, out: Path, slices: Array) -> ModelCard:
    """Write the trained model in a folder as 8-bit ONNX, with its card, to `out`; returns the card.

    `slices` (N, H, W, 3), uint8, are calibration images, like those that the model will see.
    Raises LeukoError if `model` is no model folder or is exported already, or `out` is not empty.
    """
    card = require_exportable(model, out)
    network = read_network(model, card)
    with staged(out) as scratch:
        onnx.save(quantised(network, slices), str(scratch / ONNX_FILE))
        return save_card(scratch, replace(card, weights=ONNX_FILE))


# What files raise that hold something else than the weights of a network.
UNFIT = (KeyError, ValueError, RuntimeError, DecodeError, SafetensorError, ValidationError)


def require_exportable(model: Path, out: Path) -> ModelCard:
    """The card of a model. Raises LeukoError if the model cannot be exported to `out`."""
    card = load_card(model)
    if card.weights != WEIGHTS_FILE:
        raise LeukoError(f"{model} is exported already; give a model folder from leuko train")
    if out.is_dir() and any(out.iterdir()):
        raise LeukoError(f"{out} is not empty; choose a new folder with -o")
    return card


def to_onnx(network: SpecialisedVGG) -> onnx.ModelProto:
    """The network, with centring and softmax, as an ONNX graph in float32."""
    nodes: list[onnx.NodeProto] = []
    constants = {name: value.detach().numpy() for name, value in network.state_dict().items()}

    def add(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    constants["centre"] = np.array(127, np.float32)
    x = add("Cast", ["slices"], "grey", to=TensorProto.FLOAT)
    x = add("Transpose", [add("Sub", [x, "centre"], "centred")], "input", perm=[0, 3, 1, 2])
    shares = np.split(constants.pop("fusion.weight"), len(network.stages), axis=1)
    total = ""
    for level, (stage, share) in enumerate(zip(network.stages, shares, strict=True)):
        if level:
            x = add("MaxPool", [x], f"pool{level}", kernel_shape=[2, 2], strides=[2, 2])
        for index in range(0, len(stage), 2):  # type: ignore[arg-type]
            name = f"stages.{level}.{index}"
            parameters = [f"{name}.weight", f"{name}.bias"]
            x = add("Conv", [x, *parameters], name, pads=[1, 1, 1, 1], kernel_shape=[3, 3])
            x = add("Relu", [x], f"{name}.relu")
        name = f"sides.{level}"
        parameters = [f"{name}.weight", f"{name}.bias"]
        side = add("Conv", [x, *parameters], name, pads=[1, 1, 1, 1], kernel_shape=[3, 3])
        constants[f"fusion.weight.{level}"] = share
        bias = ["fusion.bias"] if level == 0 else []
        scores = add("Conv", [side, f"fusion.weight.{level}", *bias], f"fusion.{level}")
        if level:
            constants[f"scales{level}"] = np.array([1, 1, 2**level, 2**level], np.float32)
            scores = add(
                "Resize",
                [scores, "", f"scales{level}"],
                f"resized.{level}",
                mode="linear",
                coordinate_transformation_mode="half_pixel",
            )
        total = add("Add", [total, scores], f"sum.{level}") if level else scores
    add("Softmax", [total], "probabilities", axis=1)
    classes = len(constants["fusion.bias"])
    graph = helper.make_graph(
        nodes,
        "leuko",
        [helper.make_tensor_value_info("slices", TensorProto.UINT8, ["n", "h", "w", 3])],
        [
            helper.make_tensor_value_info(
                "probabilities", TensorProto.FLOAT, ["n", classes, "h", "w"]
            )
        ],
        [
            numpy_helper.from_array(np.ascontiguousarray(value), name)
            for name, value in constants.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def quantised(network: SpecialisedVGG, slices: Array) -> onnx.ModelProto:
    """The network with stages and specialised layers in 8-bit integers (QDQ).

    Maps are scaled by their range on `slices` (N, H, W, 3), uint8; weights are scaled per channel
    and rounded jointly (`quantisation`). Weights use 7 of the 8 bits: processors without VNNI add
    pairs of products in 16 bits, which would overflow.
    """
    top, left = (max(0, (n - CALIBRATION_PIXELS) // 2) for n in slices.shape[1:3])
    middle = slices[:, top:, left:][:, :CALIBRATION_PIXELS, :CALIBRATION_PIXELS]
    chosen = middle[np.linspace(0, len(slices) - 1, CALIBRATION_SLICES).astype(int)]
    model = _nearest(to_onnx(network), chosen)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}

    def scales(ending: str) -> dict[str, torch.Tensor]:
        return {
            name.removesuffix(ending): torch.from_numpy(numpy_helper.to_array(tensor).copy())
            for name, tensor in stored.items()
            if name.endswith(ending)
        }

    of_weights, of_biases = scales(".weight_scale"), scales(".bias_quantized_scale")
    images = torch.from_numpy(centred(chosen)).permute(0, 3, 1, 2)
    for name, integers, bias in rounded(network, images, of_weights, largest=LARGEST):
        steps = (bias / of_biases[name]).round()
        for part, values, kind in (("weight", integers, torch.int8), ("bias", steps, torch.int32)):
            key = f"{name}.{part}_quantized"
            stored[key].CopyFrom(numpy_helper.from_array(values.to(kind).numpy(), key))
    return model


def _nearest(model: onnx.ModelProto, chosen: Array) -> onnx.ModelProto:
    """The model quantised by onnxruntime, with weights rounded to the nearest integers and map
    ranges from `chosen` (N, H, W, 3)."""
    float_nodes = [node.name for node in model.graph.node if node.name.startswith("fusion")]
    root = logging.getLogger()  # onnxruntime logs advice to it on every call
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):  # it prints too
            source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
            onnx.save(model, str(source))
            quantize_static(
                str(source),
                str(target),
                _Slices(chosen),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv", "Relu", "MaxPool"],
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=float_nodes,
                calibrate_method=CalibrationMethod.Percentile,
                extra_options={"CalibPercentile": PERCENTILE},
            )
            return onnx.load(str(target))
    finally:
        root.setLevel(level)


def read_network(model: Path, card: ModelCard) -> SpecialisedVGG:
    """The network of a model folder in float32; an exported one keeps its 7-bit precision.

    Raises LeukoError if the weights do not fit the card.
    """
    try:
        # A damaged card must not ask for more memory than its weights could fill.
        if _fewest_weights(card) > (model / card.weights).stat().st_size:
            raise ValueError("the file is too small")
        network = SpecialisedVGG(len(card.classes), card.stages, card.side_maps)
        if card.weights == WEIGHTS_FILE:
            state = load_file(model / WEIGHTS_FILE)
        else:
            state = _dequantised_state(model / ONNX_FILE, card, list(network.state_dict()))
        network.load_state_dict(state)
    except UNFIT as error:
        raise LeukoError(
            f"{model} has weights that do not fit its card; copy the folder again"
        ) from error
    return network


def _fewest_weights(card: ModelCard) -> int:
    """The number of weights in the stages, each of at least a byte."""
    return sum(9 * before * after for before, after in pairwise((3, *chain(*card.stages))))


def _dequantised_state(path: Path, card: ModelCard, names: list[str]) -> dict[str, torch.Tensor]:
    stored = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in onnx.load(str(path)).graph.initializer
    }
    shares = [stored[f"fusion.weight.{level}"] for level in range(len(card.stages))]
    stored["fusion.weight"] = np.concatenate(shares, axis=1)
    return {name: torch.from_numpy(_dequantised(stored, name).copy()) for name in names}


def _dequantised(stored: dict[str, Array], name: str) -> Array:
    if name in stored:
        return stored[name]
    integers = stored[f"{name}_quantized"].astype(np.float32)
    scale = stored[f"{name}_quantized_scale" if name.endswith("bias") else f"{name}_scale"]
    return integers * scale.reshape(-1, *[1] * (integers.ndim - 1))


class _Slices(CalibrationDataReader):  # type: ignore[misc]
    """Passes slices to onnxruntime's calibration, one at a time."""

    def __init__(self, slices: Array) -> None:
        self._slices: Iterator[Array] = iter(slices)

    def get_next(self) -> dict[str, Array] | None:
        image = next(self._slices, None)
        return None if image is None else {"slices": image[None]}
