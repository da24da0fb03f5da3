"""What users run instead of Leuko, or before another tool, each as a whole process on this machine.

    python benchmarks/others.py --python OTHERS/bin/python [--repeats 3] [--only NAME ...]

OTHERS is a virtual environment with `nnunetv2`, `HD-BET`, `monai` and `antspyx`; Leuko runs in this
one. The scans are simulated, and networks have random weights: speed depends on neither. Prints one
Markdown table for each pair of scans.

- nnU-Net v2 is planned by its own planner for these scans (3d_fullres, FLAIR and T1), and predicts
  with one fold and without mirroring. By default it averages five folds and eight mirrorings: forty
  times the work.
- HD-BET extracts brains with an nnU-Net that comes with its weights; here it is one that nnU-Net
  plans for T1 scans of 1 mm.
- MONAI slides the window of its tutorials (96 voxels, overlap 0.25) with a 3-D U-Net.
- ANTs corrects both bias fields (N4) and registers the T1 rigidly, with its default settings.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import numpy as np
from beside import ISOTROPIC, THICK
from speed import measured, save_pair

from leuko.io import nifti
from leuko.io.files import write_json
from leuko.model.runtime import available_cpus
from phantoms import make_phantom

PAIRS = {
    "thick slices": (THICK, (0.96, 0.96, 3.0)),
    "1 mm": (ISOTROPIC, (1.0, 1.0, 1.0)),
}
# nnU-Net plans for the median of these scans.
PLANNED_SCANS = 4

PLAN = """
import json, sys
from pathlib import Path
import torch
import nnunetv2.experiment_planning.plan_and_preprocess_api as planner
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

if __name__ == "__main__":
    number, name, fold, out = int(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4])
    planner.extract_fingerprints([number], num_processes=2, check_dataset_integrity=False)
    planner.plan_experiments([number])
    preprocessed, raw = (Path(folder) / name for folder in sys.argv[5:7])
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    described = json.loads((raw / "dataset.json").read_text())
    manager = PlansManager(plans)
    configuration = manager.get_configuration("3d_fullres")
    network = nnUNetTrainer.build_network_architecture(
        manager, configuration, len(described["channel_names"]), 2, enable_deep_supervision=False
    )
    (out / f"fold_{fold}").mkdir(parents=True)
    (out / "plans.json").write_text(json.dumps(plans))
    (out / "dataset.json").write_text(json.dumps(described))
    torch.save(
        {
            "network_weights": network.state_dict(),
            "trainer_name": "nnUNetTrainer",
            "init_args": {"configuration": "3d_fullres"},
            "inference_allowed_mirroring_axes": (0, 1, 2),
        },
        out / f"fold_{fold}" / "checkpoint_final.pth",
    )
    print("planned patch", configuration.patch_size, "spacing", configuration.spacing)
"""

MONAI = """
import sys
import numpy, torch
from monai.inferers import sliding_window_inference
from monai.networks.nets import UNet
from monai.transforms import LoadImage, NormalizeIntensity, ResampleToMatch, SaveImage

flair, t1, out = sys.argv[1:4]
load = LoadImage(image_only=True, ensure_channel_first=True)
first = load(flair)
second = ResampleToMatch()(load(t1), first)
pair = torch.cat([NormalizeIntensity()(scan) for scan in (first, second)])
network = UNet(3, 2, 2, channels=(32, 64, 128, 256, 320), strides=(2, 2, 2, 2), num_res_units=2)
network.eval()
with torch.inference_mode():
    found = sliding_window_inference(pair[None], (96, 96, 96), 1, network, overlap=0.25)
mask = first.clone()
mask[:] = found.argmax(dim=1)
SaveImage(out, output_postfix="wmh")(mask)
"""

ANTS = """
import sys
import ants

flair, t1 = (ants.n4_bias_field_correction(ants.image_read(path)) for path in sys.argv[1:3])
moved = ants.registration(flair, t1, type_of_transform="Rigid")["warpedmovout"]
ants.image_write(moved, sys.argv[3] + "/t1.nii.gz")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--python", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[])
    options = parser.parse_args()
    print(f"{available_cpus()} cores\n")
    for title, (shape, spacing_mm) in PAIRS.items():
        with tempfile.TemporaryDirectory() as folder:
            scratch = Path(folder)
            scans = save_pair(scratch / "pair", shape, spacing_mm)
            commands = prepared(scratch, options.python, scans, shape, spacing_mm)
            size = "x".join(map(str, shape))
            print(
                f"| {title}, {size} | seconds | times Leuko | processor seconds | peak memory, MB |"
            )
            print("|---" * 5 + "|", flush=True)
            leuko_s = 0.0
            for name, (command, environment) in commands.items():
                if options.only and not any(wanted in name for wanted in options.only):
                    continue
                runs = [measured(command, environment) for _ in range(options.repeats)]
                seconds, processor, megabytes = (
                    median(column) for column in zip(*runs, strict=True)
                )
                leuko_s = leuko_s or seconds
                print(
                    f"| {name} | {seconds:.1f} | {seconds / leuko_s:.1f} | {processor:.0f} "
                    f"| {megabytes:.0f} |",
                    flush=True,
                )
            print()


def prepared(
    scratch: Path,
    python: Path,
    scans: tuple[Path, Path],
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
) -> dict[str, tuple[Sequence[str | Path], Mapping[str, str]]]:
    """The command and the environment of each method; Leuko is the first."""
    flair, t1 = scans
    folders = {name: str(scratch / name) for name in ("nnUNet_raw", "nnUNet_preprocessed")}
    environment = folders | {"nnUNet_results": str(scratch / "results"), "HOME": str(scratch)}
    model = scratch / "results/Dataset001_WMH/nnUNetTrainer__nnUNetPlans__3d_fullres"
    brains = scratch / "hd-bet_params/release_2.0.0"
    raw = Path(folders["nnUNet_raw"])
    save_dataset(raw / "Dataset001_WMH", shape, spacing_mm, ("FLAIR", "T1"))
    save_dataset(raw / "Dataset002_BRAIN", *PAIRS["1 mm"], ("T1",))
    for number, name, fold, out in (
        (1, "Dataset001_WMH", "0", model),
        (2, "Dataset002_BRAIN", "all", brains),
    ):
        run_code(
            python, scratch, PLAN, environment, number, name, fold, out, *reversed(folders.values())
        )
    given = scratch / "given"
    given.mkdir()
    for channel in range(2):  # nnU-Net needs both on one grid
        head = raw / f"Dataset001_WMH/imagesTr/head0_{channel:04}.nii.gz"
        (given / f"scan_{channel:04}.nii.gz").symlink_to(head)
    bare: Mapping[str, str] = {}
    segment = (sys.executable, "-m", "leuko.cli", "segment", "--flair", flair, "--t1", t1, "-o")
    found = (python.parent / "nnUNetv2_predict", "-i", given, "-o")
    kind = ("-d", "1", "-c", "3d_fullres", "-f", "0", "-device", "cpu")
    bet = (python.parent / "hd-bet", "-i", t1, "-o", scratch / "brain.nii.gz", "-device", "cpu")
    unmirrored = "--disable_tta"
    files = {}
    for name, code in (("monai", MONAI), ("ants", ANTS)):
        files[name] = scratch / f"run_{name}.py"
        files[name].write_text(code, encoding="utf-8")
        (scratch / f"{name}-out").mkdir()
    return {
        "leuko segment, all outputs": ((*segment, scratch / "leuko"), bare),
        "nnU-Net v2, one fold, not mirrored": (
            (*found, scratch / "nn1", *kind, unmirrored),
            environment,
        ),
        "HD-BET, not mirrored": ((*bet, unmirrored), environment),
        "MONAI, sliding window of a 3-D U-Net": (
            (python, files["monai"], flair, t1, scratch / "monai-out"),
            bare,
        ),
        "ANTs, N4 and rigid registration": (
            (python, files["ants"], flair, t1, scratch / "ants-out"),
            bare,
        ),
    }


def save_dataset(
    folder: Path,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    channels: Sequence[str],
) -> None:
    """Labelled heads as nnU-Net expects them."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for k in range(PLANNED_SCANS):
        head = make_phantom(np.random.default_rng(k), shape=shape, spacing_mm=spacing_mm)
        scans = {"FLAIR": head.flair, "T1": head.t1}
        for number, channel in enumerate(channels):
            nifti.write(folder / f"imagesTr/head{k}_{number:04}.nii.gz", scans[channel])
        nifti.write(folder / f"labelsTr/head{k}.nii.gz", head.labels)
    described = {
        "channel_names": {str(number): name for number, name in enumerate(channels)},
        "labels": {"background": 0, "WMH": 1},
        "numTraining": PLANNED_SCANS,
        "file_ending": ".nii.gz",
    }
    write_json(folder / "dataset.json", described)


def run_code(
    python: Path, scratch: Path, code: str, environment: Mapping[str, str], *arguments: object
) -> None:
    """Run a program of the other environment and show what it prints."""
    file = scratch / "plan.py"
    file.write_text(code, encoding="utf-8")
    command = [str(python), str(file), *map(str, arguments)]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | environment
    )
    print(done.stdout.strip().splitlines()[-1], file=sys.stderr)


if __name__ == "__main__":
    main()
