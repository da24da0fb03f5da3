"""How fast Leuko is on this machine, beside what was asked for: one table on stdout.

    python benchmarks/speed.py [--quick]

Needs Leuko with its extras `train` and `dev`. Scans are made up on the spot, and so are the weights
that the float network is measured with: speed does not depend on either.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from scipy.ndimage import affine_transform, gaussian_filter
from scipy.spatial.transform import Rotation
from skimage.morphology import area_opening
from torch.utils.flop_counter import FlopCounterMode

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import leuko
from leuko.io import nifti
from leuko.io.record import RunRecord
from leuko.io.tissue import Tissue
from leuko.lesions import mni
from leuko.lesions.measure import MaskedScan, analyse
from leuko.model import runtime, weights
from leuko.model.card import WEIGHTS_FILE, ModelCard, save_card
from leuko.model.network import SIDE_MAPS, VGG16, SpecialisedVGG
from leuko.preprocessing.registration import align
from leuko.preprocessing.slices import Preparation, area_residue, prepare, requantise
from leuko.training.settings import CLASSES
from leuko.volume import Array, Volume, resample_onto
from phantoms import make_phantom
from reports import a_head, a_report

SLICE = (208, 176)  # a head at 1 mm
# Smaller matrices do not fill the caches and larger ones gain nothing.
MATRIX_SIZES = (1024, 2048, 4096)


@dataclass(frozen=True)
class Row:
    """One line of the table. `target` is what was asked for, with `met` telling if it was met."""

    what: str
    value: float
    unit: str
    target: str = ""
    met: bool | None = None


def main() -> None:
    """Measure, then print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="few repeats: a look, no measurement")
    repeats = 2 if parser.parse_args().quick else 7
    torch.set_num_threads(runtime.available_cpus())
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        pair = save_pair(scratch / "pair", (320, 320, 48), (0.72, 0.72, 3.0))
        thick = save_pair(scratch / "thick", (240, 240, 48), (0.96, 0.96, 3.0))
        model = save_random_model(scratch / "model")
        for name, measurement in {
            "area opening": measure_area_opening(repeats),
            "preparation": measure_preparation(*pair, repeats),
            "alignment": measure_alignment(*thick, repeats),
            "network": measure_network(model, repeats),
            "8 bits": measure_eight_bits(repeats),
            "analysis": measure_analysis(repeats),
            "segment": measure_segment(*thick, scratch / "thick-out", max(1, repeats // 2), 700),
            "large": measure_segment(*pair, scratch / "large-out", max(1, repeats // 3), 1000),
            "many scans": measure_many(*thick, 20 if repeats > 2 else 2),
            "start-up": measure_start(repeats),
        }.items():
            print(f"measuring: {name}", file=sys.stderr)
            rows += measurement
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"{torch.get_num_threads()} cores, {capability}, torch {torch.__version__}\n")
    print(as_text(rows))


def measure_area_opening(repeats: int) -> Iterator[Row]:
    """Of a whole head at 1 mm, and of a few of its slices against scikit-image."""
    head = make_phantom(np.random.default_rng(0), shape=(182, 218, 182), spacing_mm=(1, 1, 1))
    preparation = Preparation()
    grey = requantise(head.flair, preparation.tissue_grey)
    slices = np.ascontiguousarray(np.moveaxis(grey, 2, 0))
    pixels = round(preparation.opening_mm2)  # of 1 mm2 each
    seconds = median(timed(lambda: area_residue(slices, pixels)) for _ in range(repeats))
    yield Row("area opening, 182x218x182", seconds, "s", "below 1", seconds < 1)

    def theirs() -> list[Array]:
        return [area_opening(image, pixels, connectivity=2) for image in few]

    few = slices[len(slices) // 4 :: len(slices) // 6][:4]
    ratios = [timed(theirs) / timed(lambda: area_residue(few, pixels)) for _ in range(repeats)]
    yield Row("  scikit-image's on 4 of the slices", median(ratios), "times as long")


def measure_preparation(flair: Path, t1: Path, repeats: int) -> Iterator[Row]:
    """Of a pair on two grids, read before the clock starts."""
    scans = nifti.read(flair), nifti.read(t1)
    seconds = median(timed(lambda: prepare(*scans, Preparation())) for _ in range(repeats))
    size = "x".join(map(str, scans[0].data.shape))
    yield Row(f"preparation, {size} and a 1 mm T1", seconds, "s", "below 2", seconds < 2)


def measure_alignment(flair: Path, t1: Path, repeats: int) -> Iterator[Row]:
    """A look at a pair that is aligned, and the registration of one that is not."""
    scans = nifti.read(flair), nifti.read(t1)
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_euler("xyz", (12, -10, 8), degrees=True).as_matrix()
    motion[:3, 3] = 20, -10, 15
    moved = replace(scans[1], affine=motion @ scans[1].affine)
    threads = runtime.available_cpus()
    look = median(timed(lambda: align(*scans, threads=threads)) for _ in range(repeats))
    yield Row("a look whether a T1 is aligned", look, "s")
    registered = median(
        timed(lambda: align(scans[0], moved, threads=threads)) for _ in range(repeats)
    )
    yield Row("registration of a moved T1", registered, "s", "at most 4", registered <= 4)


def measure_network(model: Path, repeats: int) -> Iterator[Row]:
    """The forward pass, in turns with the matrix products that show what the machine can do."""
    loaded = runtime.load(model)
    grey = np.random.default_rng(0).integers(0, 255, (runtime.BATCH, *SLICE, 3), dtype=np.uint8)
    with FlopCounterMode(display=False) as counter:
        loaded.predict(grey)
    network_gflop = counter.get_total_flops() / 1e9
    matrices = [torch.randn(size, size) for size in MATRIX_SIZES]
    matrix_gflop = np.array([2 * size**3 / 1e9 for size in MATRIX_SIZES])
    network_s, matrix_s = [], []
    for _ in range(2 * repeats):
        network_s.append(timed(lambda: loaded.predict(grey)))
        matrix_s.append([timed(partial(torch.matmul, a, a)) for a in matrices])
    matrix_rates = matrix_gflop / np.array(matrix_s)  # (rounds, sizes) GFLOP/s
    best = int(np.argmax(np.median(matrix_rates, axis=0)))
    network_rates = network_gflop / np.array(network_s)
    # Within a round both see the same load of the machine by others.
    part = 100 * float(np.median(network_rates / matrix_rates[:, best]))
    rate = float(np.median(network_rates))
    yield Row(f"network, {runtime.BATCH} slices {SLICE[0]}x{SLICE[1]}, fp32", rate, "GFLOP/s")
    size, machine = MATRIX_SIZES[best], float(np.median(matrix_rates[:, best]))
    yield Row(f"  fp32 matrix product, {size}x{size}", machine, "GFLOP/s")
    yield Row("  network's part of the matrix rate", part, "%", "at least 60", part >= 60)
    yield Row("  seconds a slice", median(network_s) / runtime.BATCH, "s")


def measure_eight_bits(repeats: int) -> Iterator[Row]:
    """The bundled model, in turns with 8-bit matrix products by the same library."""
    model = runtime.load(weights.find(weights.DEFAULT))
    grey = np.random.default_rng(0).integers(0, 255, (runtime.BATCH, *SLICE, 3), dtype=np.uint8)
    network = SpecialisedVGG(len(model.card.classes), model.card.stages, model.card.side_maps)
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, *SLICE))
    network_gop = runtime.BATCH * counter.get_total_flops() / 1e9
    products = [int8_product(size) for size in MATRIX_SIZES[:2]]
    network_s, rates = [], []
    for _ in range(2 * repeats):
        network_s.append(timed(lambda: model.predict(grey)))
        rates.append([gop / timed(product) for gop, product in products])
    machine = float(np.median(rates, axis=0).max())
    rate = float(np.median(network_gop / np.array(network_s)))
    yield Row(f"{weights.DEFAULT}, {runtime.BATCH} slices {SLICE[0]}x{SLICE[1]}", rate, "Gop/s")
    yield Row("  8-bit matrix product", machine, "Gop/s")
    yield Row("  network's part of the matrix rate", 100 * rate / machine, "%")
    yield Row("  seconds a slice", median(network_s) / runtime.BATCH, "s")


def int8_product(size: int) -> tuple[float, Callable[[], object]]:
    """Giga-operations of a product of 8-bit matrices, and what computes it."""
    rng = np.random.default_rng(0)
    right = rng.integers(-64, 64, (size, size), dtype=np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["left", "right"], ["product"])],
        "product",
        [helper.make_tensor_value_info("left", TensorProto.UINT8, [size, size])],
        [helper.make_tensor_value_info("product", TensorProto.INT32, [size, size])],
        [numpy_helper.from_array(right, "right")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = runtime.available_cpus()
    session = onnxruntime.InferenceSession(made.SerializeToString(), options)
    left = rng.integers(0, 255, (size, size), dtype=np.uint8)
    return 2 * size**3 / 1e9, lambda: session.run(None, {"left": left})


def measure_analysis(repeats: int) -> Iterator[Row]:
    """Of the MNI152 brain with lesions in a tenth of its white matter, at 320x320x48."""
    template, shape = mni.read("tissue"), (320, 320, 48)
    affine = np.diag([0.72, 0.72, 3.0, 1.0])
    affine[:3, 3] = template.affine[:3, :3] @ (np.array(template.data.shape) / 2)
    affine[:3, 3] += template.affine[:3, 3] - affine[:3, :3] @ (np.array(shape) / 2)
    to_template = np.linalg.inv(template.affine) @ affine
    tissue = affine_transform(template.data, to_template, output_shape=shape, order=0)
    noise = gaussian_filter(np.random.default_rng(0).normal(size=shape), (4, 4, 1))
    white = tissue == Tissue.WHITE
    mask = white & (noise > np.quantile(noise[white], 0.9))
    tissue[mask] = Tissue.WMH
    scan = Volume(tissue, affine)
    case = MaskedScan(
        flair=scan.with_data(100.0 * tissue),
        t1=tissue,
        tissue=scan,
        probability=mask.astype(np.float32),
        mask=mask,
        liberal=white & (noise > np.quantile(noise[white], 0.87)) | mask,
    )
    threads = runtime.available_cpus()
    seconds = median(
        timed(lambda: analyse(case, place=mni.Place.of(scan), rule="voxel10", threads=threads))
        for _ in range(repeats)
    )
    size = f"320x320x48, {scan.ml(mask):.0f} mL of lesions"
    yield Row(f"analysis, {size}", seconds, "s", "below 3", seconds < 3)
    flair, mask = a_head([((160, 160, 24), 40)], shape, affine)
    rng = np.random.default_rng(0)
    noisy = flair.data * rng.normal(1, 0.05, shape).clip(0, 1.4)
    flair = flair.with_data(noisy.astype(np.uint8))
    with tempfile.TemporaryDirectory() as folder:
        page = [timed(lambda: a_report(Path(folder), flair, mask)) for _ in range(repeats)]
    yield Row("report and picture, 320x320x48", median(page), "s", "below 2", median(page) < 2)


def measure_segment(
    flair: Path, t1: Path, scratch: Path, repeats: int, most_mb: int
) -> Iterator[Row]:
    """`leuko segment` with the bundled model as a whole process: time, memory, stages."""
    seconds, memory, stages = [], [], []
    for turn in range(repeats):
        out = scratch / f"out-{turn}"
        command = ("segment", "--flair", flair, "--t1", t1, "-o", out)
        spent, peak = run_python("-m", "leuko.cli", *command)
        seconds.append(spent)
        memory.append(peak)
        stages.append(RunRecord.read(out / "run.json").seconds)
    size = "x".join(map(str, nifti.read(flair).data.shape))
    megabytes = median(memory)
    whole = median(seconds)
    without = median(
        spent - sum(run[stage] for stage in ("check", "analyse", "report"))
        for spent, run in zip(seconds, stages, strict=True)
    )
    yield Row(f"leuko segment, {size}, cold", whole, "s")
    yield Row("  without checks, analysis and report", without, "s", "at most 4", without <= 4)
    for stage in stages[0]:
        yield Row(f"  {stage}", median(run[stage] for run in stages), "s")
    yield Row("  peak memory", megabytes, "MB", f"at most {most_mb}", megabytes <= most_mb)


def measure_many(flair: Path, t1: Path, scans: int) -> Iterator[Row]:
    """Many scans by one process: the model loaded once, and for each, in turn."""
    model, first = leuko.load_model(), leuko.segment(flair, t1)  # libraries are loaded from here on
    once, each = [], []
    for _ in range(scans):
        once.append(timed(lambda: leuko.segment(flair, t1, model=model)))
        each.append(timed(lambda: leuko.segment(flair, t1)))
    size = "x".join(map(str, first.mask.shape))
    yield Row(f"leuko.segment, {size}, each of {scans}, nothing written", median(once), "s")
    yield Row("  the model loaded for each", median(each), "s")


def measure_start(repeats: int) -> Iterator[Row]:
    """Whole processes that do nothing, so that only their start is left."""
    for what, arguments, limit in (
        ("leuko --help", ("-m", "leuko.cli", "--help"), 0.5),
        ("import leuko", ("-c", "import leuko"), 0.2),
    ):
        run_python(*arguments)  # the files are in memory from here on
        seconds = median(run_python(*arguments)[0] for _ in range(repeats))
        yield Row(what, seconds, "s", f"below {limit}", seconds < limit)
    alone = median(run_python("-c", "pass")[0] for _ in range(repeats))
    yield Row("  python alone", alone, "s")


def save_pair(
    folder: Path, size: tuple[int, int, int], spacing_mm: tuple[float, float, float]
) -> tuple[Path, Path]:
    """A FLAIR, and its T1 as a sagittal 1 mm scan of a head tilted by 5 degrees."""
    head = make_phantom(np.random.default_rng(0), shape=size, spacing_mm=spacing_mm)
    shape = (256, 256, 176)  # stored along anterior-posterior, superior-inferior, left-right
    tilt = np.radians(5)
    affine = np.eye(4)
    affine[:3, :3] = [
        [0, 0, 1],
        [-np.cos(tilt), np.sin(tilt), 0],
        [-np.sin(tilt), -np.cos(tilt), 0],
    ]
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
    sagittal = Volume(np.zeros(shape, dtype=np.int16), affine)
    t1 = resample_onto(head.t1, sagittal)
    folder.mkdir()
    paths = folder / "FLAIR.nii.gz", folder / "T1.nii.gz"
    nifti.write(paths[0], head.flair)
    nifti.write(paths[1], t1.with_data(t1.data.astype(np.int16)))
    return paths


def save_random_model(folder: Path) -> Path:
    """A model folder of the full network, not trained."""
    torch.manual_seed(0)
    network = SpecialisedVGG(len(CLASSES))
    folder.mkdir()
    save_file(network.state_dict(), folder / WEIGHTS_FILE)
    save_card(
        folder,
        ModelCard(
            name="random",
            classes=CLASSES,
            preparation=Preparation(),
            stages=VGG16,
            side_maps=SIDE_MAPS,
            training={},
        ),
    )
    return folder


def save_noise_subject(folder: Path) -> None:
    """A labelled subject without air around it, so that its slices come out just as SLICE."""
    rng = np.random.default_rng(0)
    shape, affine = (*SLICE, 20), np.diag([1.0, 1, 3, 1])
    labels = np.zeros(shape, dtype=np.uint8)
    labels[100:110, 80:90, 5:15] = 1
    folder.mkdir(parents=True)
    for name in ("FLAIR", "T1"):
        grey = rng.normal(300, 20, shape).astype(np.int16)
        nifti.write(folder / f"{name}.nii.gz", Volume(grey, affine))
    nifti.write(folder / "wmh.nii.gz", Volume(labels, affine))


def timed(action: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


# A process starts as a copy of the one that starts it, and its peak memory counts the copy. So a
# small one stands between us, with torch in memory, and the one that is measured.
LAUNCHER = """
import json, resource, subprocess, sys, time
begun = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
seconds = time.perf_counter() - begun
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([seconds, used.ru_utime + used.ru_stime, used.ru_maxrss]))
"""


def measured(
    command: Sequence[str | Path], environment: Mapping[str, str]
) -> tuple[float, float, float]:
    """Seconds, processor seconds and peak memory in MB of a command with its children."""
    launcher = [sys.executable, "-c", LAUNCHER, *map(str, command)]
    done = subprocess.run(launcher, check=True, capture_output=True, env=os.environ | environment)
    seconds, processor, peak = json.loads(done.stdout)
    return seconds, processor, peak * (1 if sys.platform == "darwin" else 1024) / 1e6


def run_python(*arguments: str | Path) -> tuple[float, float]:
    """Seconds and peak memory in MB of a whole Python process."""
    seconds, _, megabytes = measured((sys.executable, *arguments), {})
    return seconds, megabytes


def as_text(rows: list[Row]) -> str:
    """The rows as aligned columns."""
    met = {True: "yes", False: "NO", None: ""}
    cells = [("what", "value", "unit", "asked for", "met")]
    cells += [(r.what, f"{r.value:.3g}", r.unit, r.target, met[r.met]) for r in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        f"{what:<{widths[0]}}  {value:>{widths[1]}} {unit:<{widths[2]}}  {target:<{widths[3]}}  {m}"
        for what, value, unit, target, m in cells
    )


if __name__ == "__main__":
    main()
