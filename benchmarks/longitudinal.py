"""A BIDS dataset of 40 participants with three sessions, killed while it runs and started again.

    python benchmarks/longitudinal.py FOLDER --heads LABELS [--participants 40] [--sessions 3]

Writes synthetic scans of few slices (of FreeSurfer label maps) to FOLDER/raw. The sessions of a
participant are one scan in other positions and with other noise. `leuko bids` runs the levels
participant and longitudinal, as a user would; once undisturbed, and once killed with SIGKILL in the
middle of each level and started again. Prints what was done twice, what is missing, and whether
both runs give the same tables. Needs the extra `train`; about half an hour on two cores.
"""

import argparse
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from cohort import made

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from cohorts import command
from leuko.io import nifti
from leuko.longitudinal.compare import COMPARISON_FILE
from leuko.synthesis.anatomy import load_heads

DEGREES, MM, NOISE = 3.0, 4.0, 0.01  # at most; of a session; noise per 99th percentile
RESULTS = {
    "participant": "sub-*/ses-*/anat/*_stats.json",
    "longitudinal": f"sub-*/longitudinal/{COMPARISON_FILE}",
}
TABLES = ("wmh.tsv", "longitudinal.tsv")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--heads", type=Path, required=True)
    parser.add_argument("--participants", type=int, default=40)
    parser.add_argument("--sessions", type=int, default=3)
    given = parser.parse_args()
    raw = given.folder / "raw"
    if not raw.exists():
        made_in = given.folder / "part"
        shutil.rmtree(made_in, ignore_errors=True)
        make(made_in, given.heads, given.participants, given.sessions)
        (made_in / "raw").rename(raw)
    whole, killed = given.folder / "undisturbed", given.folder / "killed"
    for out in (whole, killed):
        shutil.rmtree(out, ignore_errors=True)
    expected = {
        "participant": given.participants * given.sessions,
        "longitudinal": given.participants,
    }
    for level, number in expected.items():
        seconds = run(raw, whole, level)
        print(f"{level}: {len(results(whole, level))} of {number} results, {seconds:.0f} s")
    for level, number in expected.items():
        before = killed_at(number // 2, raw, killed, level)
        run(raw, killed, level)
        after = results(killed, level)
        again = sum(after[path] != when for path, when in before.items())
        print(f"{level}: {len(before)} results when killed, {again} of them done again")
        print(f"{level}: {len(after)} results after the restart")
    for out in (whole, killed):
        run(raw, out, "group")
    for name in TABLES:
        same = (whole / name).read_bytes() == (killed / name).read_bytes()
        print(f"{name} {'is identical to' if same else 'differs from'} that of the undisturbed run")
    left = [path for path in killed.rglob(".leuko-*") if path.is_dir()]
    print(f"temporary folders left: {len(left)}")


def make(folder: Path, heads: Path, participants: int, sessions: int) -> None:
    """Write the dataset to the folder raw in `folder`."""
    raw, scans = folder / "raw", made(folder / "scans", load_heads(heads))
    for participant, home in enumerate(islice(scans, participants), 1):
        rng = np.random.default_rng(participant)
        for session in range(1, sessions + 1):
            name = f"sub-{participant:02}_ses-{session}"
            anat = raw / f"sub-{participant:02}" / f"ses-{session}" / "anat"
            moved = np.eye(4)
            turned = Rotation.from_euler("xyz", rng.uniform(-DEGREES, DEGREES, 3), degrees=True)
            moved[:3, :3], moved[:3, 3] = turned.as_matrix(), rng.uniform(-MM, MM, 3)
            for scan, suffix in (("FLAIR", "FLAIR"), ("T1", "T1w")):
                volume = nifti.read(home / f"{scan}.nii.gz")
                spread = NOISE * np.percentile(volume.data, 99)
                noisy = volume.data + rng.normal(0, spread, volume.data.shape) * (volume.data > 0)
                volume = replace(volume, affine=moved @ volume.affine)
                anat.mkdir(parents=True, exist_ok=True)
                path = anat / f"{name}_{suffix}.nii.gz"
                nifti.write(path, volume.with_data(np.clip(noisy, 0, None).astype(np.int16)))
    (raw / "dataset_description.json").write_text('{"Name": "synthetic", "BIDSVersion": "1.10.0"}')


def results(out: Path, level: str) -> dict[Path, int]:
    """When each result was written."""
    return {path: path.stat().st_mtime_ns for path in out.glob(RESULTS[level])}


def run(raw: Path, out: Path, level: str) -> float:
    """The seconds that a run took, which may have failures."""
    start = time.perf_counter()
    ended = subprocess.run(command("bids", raw, out, level), stdout=subprocess.DEVNULL, check=False)
    if ended.returncode not in (0, 1):
        raise SystemExit(ended.returncode)
    return time.perf_counter() - start


def killed_at(number: int, raw: Path, out: Path, level: str) -> dict[Path, int]:
    """The results that a run has when it is killed, at least `number`."""
    running = subprocess.Popen(command("bids", raw, out, level), stdout=subprocess.DEVNULL)
    while len(results(out, level)) < number:
        if running.poll() is not None:
            raise SystemExit("the run ended before it was killed")
        time.sleep(0.2)
    running.kill()
    running.wait()
    time.sleep(2)  # its children end with it
    return results(out, level)


if __name__ == "__main__":
    main()
