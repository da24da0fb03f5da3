"""Made-up visits of one person, as `leuko segment` would leave them."""

from dataclasses import replace

import numpy as np
from scipy.spatial.transform import Rotation

from leuko.io import nifti
from leuko.io.files import sha256
from leuko.io.record import Inputs
from reports import a_record, a_scan

HERE, THERE = (30, 30, 24), (-30, -40, 24)


def motion(degrees, shift_mm):
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    turn[:3, 3] = shift_mm
    return turn


def spot(scan, centre_mm, radius_mm):
    indices = np.indices(scan.data.shape).reshape(3, -1)
    points = scan.affine @ np.vstack([indices, np.ones(indices.shape[1])])
    away = np.linalg.norm(points[:3] - np.array(centre_mm)[:, None], axis=0)
    return (away <= radius_mm).reshape(scan.data.shape)


def run_of(folder, scan, mask, **settings):
    """What leuko segment would leave of a scan with these lesions."""
    folder.mkdir(parents=True)
    flair = scan.with_data(np.where(mask, 300, scan.data).astype(np.int16))
    nifti.write(folder / "flair.nii.gz", flair)
    nifti.write(folder / "wmh.nii.gz", scan.with_data(mask.astype(np.uint8)))
    nifti.write(folder / "wmh_prob.nii.gz", scan.with_data((0.9 * mask).astype(np.float32)))
    rims = settings.pop("rims", "separate")
    path, ml = folder / "flair.nii.gz", scan.ml(mask)
    record = a_record(
        scan,
        mask,
        inputs=Inputs(flair=a_scan(str(path), sha256(path))),
        checks=("motion",),
        volume_ml=ml,
        rims=rims,
        wmh_ml=ml,
        rims_ml=2.5 if rims == "separate" else None,
        wmh_and_rims_ml=ml + 2.5 if rims == "separate" else None,
    )
    chosen = {"threshold": 0.5, "smallest_lesion_mm3": 5.0} | settings
    replace(record, settings=replace(record.settings, **chosen)).write(folder / "run.json")
    return folder
