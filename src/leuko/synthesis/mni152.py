"""The MNI152 brain from nilearn: its T1 and its tissue maps, without a download."""

import numpy as np

from leuko.errors import require
from leuko.volume import Array, Volume


def load() -> tuple[Volume, Array]:
    """The template's T1, and the parts of CSF, grey and white matter in each voxel, (3, X, Y, Z).

    At 1 mm, axes running R, A, S; both are 0 outside the brain. Raises LeukoError without nilearn.
    """
    require("nilearn", extra="demo")
    from nilearn import datasets

    t1, grey, white, mask = (
        Volume(np.asarray(image.dataobj, dtype=np.float32), image.affine, name="MNI152").canonical()
        for image in (
            datasets.load_mni152_template(resolution=1),
            datasets.load_mni152_gm_template(resolution=1),
            datasets.load_mni152_wm_template(resolution=1),
            datasets.load_mni152_brain_mask(resolution=1),
        )
    )
    inside = mask.data > 0
    csf = np.clip(1 - grey.data - white.data, 0, 1)
    shares = np.stack([csf, grey.data, white.data]) * inside
    return t1.with_data(t1.data * inside), shares
