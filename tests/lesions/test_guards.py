"""Each check finds its simulated fault, and finds nothing on a whole head."""

from dataclasses import replace

import numpy as np

from leuko.io.tissue import Tissue
from leuko.lesions.quality_checks import (
    OTHERS,
    WRONG_SCAN,
    CheckedScan,
    examine,
    is_doubted,
    wrong_scan,
)
from leuko.volume import Volume

#                      air csf ventricle grey white rim wmh
FLAIR_GREY = np.array([5, 40, 30, 120, 100, 120, 170.0])
T1_GREY = np.array([5, 40, 30, 70, 100, 90, 80.0])
AFFINE = np.diag([2.0, 2.0, 4.0, 1.0])


def a_case(radii=(70, 64, 56, 18), low=0, spoil=None):
    """A ball of a brain in air, as FLAIR, T1 and tissues; its lowest slices may be missing."""
    x, y, z = np.ogrid[-52:52, -52:52, -22 + low : 22]
    radius = np.sqrt((2 * x) ** 2 + (2 * y) ** 2 + (4 * z) ** 2)
    tissue = np.zeros(radius.shape, np.uint8)
    for limit, kind in zip(
        radii, (Tissue.CSF, Tissue.GREY, Tissue.WHITE, Tissue.VENTRICLE), strict=True
    ):
        tissue[radius < limit] = kind
    tissue[38:41, 38:41, 21:23] = Tissue.WMH
    rng = np.random.default_rng(0)
    flair, t1 = (
        np.abs(grey[tissue] + rng.normal(0, 1, tissue.shape)) for grey in (FLAIR_GREY, T1_GREY)
    )
    if spoil:
        spoil(flair, t1, tissue)
    return CheckedScan(Volume(flair, AFFINE, name="FLAIR.nii.gz"), t1, tissue)


def said(case, level=None):
    """The texts of what was found, all of one level if it is given."""
    findings = examine(case)[0]
    assert level is None or {finding.level for finding in findings} == {level}
    return [finding.text for finding in findings]


def test_a_whole_head_passes_all_checks_that_were_done():
    titles = {check.title for check in (*WRONG_SCAN, *OTHERS)}
    findings, done = examine(a_case())
    assert (findings, set(done)) == ([], titles)
    findings, done = examine(replace(a_case(), t1=None))
    assert (findings, set(done)) == ([], titles - {"contrast medium in the T1"})


def test_a_t1_in_place_of_the_flair_is_seen_by_its_little_white_matter():
    case = a_case(radii=(70, 64, 40, 18))
    (message,) = said(case, "do not use")
    assert "does not look like a FLAIR" in message
    assert "were FLAIR and T1 swapped?" in message
    (message,) = said(replace(case, t1=None))
    assert "swapped" not in message


def test_a_flair_is_no_wrong_scan_and_a_t1_is_one():
    assert wrong_scan(examine(a_case())[0]) is None
    assert "does not look like a FLAIR" in wrong_scan(examine(a_case(radii=(70, 64, 40, 18)))[0])


def test_after_a_reason_not_to_use_the_result_no_other_check_is_done():
    findings, done = examine(a_case(radii=(34, 30, 26, 8)))
    assert is_doubted(findings)
    assert done == ["volume of the brain"]


def test_a_t2_is_seen_by_its_missing_dark_csf():
    """Weak evidence by itself: brains may have lost their CSF when they were extracted."""
    case = a_case(radii=(64.4, 64, 56, 18))
    (message,) = said(case, "warning")
    assert "is it a T2, or were FLAIR and T1 swapped?" in message
    assert "% of the brain, expected at least 5 %;" in message
    assert wrong_scan(examine(case)[0]) == message


def test_bright_ventricles_are_no_flair_though_no_other_csf_is_there():
    def without_csf(flair, _, tissue):
        flair[tissue == Tissue.VENTRICLE] = 180
        tissue[tissue == Tissue.CSF] = Tissue.GREY

    (message,) = said(a_case(spoil=without_csf), "do not use")
    assert "CSF is 1.80 times as bright" in message


def test_bright_csf_is_no_flair():
    def like_t2(flair, _, tissue):
        flair[(tissue == Tissue.CSF) | (tissue == Tissue.VENTRICLE)] = 180

    (message,) = said(a_case(spoil=like_t2), "do not use")
    assert "CSF is 1.80 times as bright as white matter, expected at most 0.85" in message


def test_what_is_no_head_is_seen_by_its_size():
    (message,) = said(a_case(radii=(34, 30, 26, 8)), "do not use")
    assert "mL of brain and CSF were found" in message


def test_a_part_of_a_brain_is_warned_of():
    (message,) = said(a_case(radii=(44, 40, 36, 8)), "warning")
    assert "expected 600 to 2400" in message


def test_without_csf_little_white_matter_is_no_proof_of_another_image():
    (message,) = said(a_case(radii=(64, 64, 40, 2)), "warning")
    assert "CSF is 0.0 % of the brain" in message
    assert "does not look like a FLAIR" in said(a_case(radii=(65, 64, 40, 18)))[0]


def test_voxel_sizes_in_another_unit_are_seen_by_too_much_brain():
    (message,) = said(a_case(radii=(1000, 90, 80, 20)), "warning")
    assert "mL of brain and CSF were found" in message


def test_a_brain_that_is_cut_off_is_seen_at_the_outermost_slice():
    (message,) = said(a_case(low=16), "warning")
    assert "cut off at its bottom" in message


def test_a_side_that_is_cut_off_is_named():
    case = a_case()
    half = CheckedScan(
        Volume(case.flair.data[:78], AFFINE, name="FLAIR.nii.gz"), case.t1[:78], case.tissue[:78]
    )
    (message,) = said(half)
    assert "cut off at its right" in message


def test_thick_slices_are_named():
    case = a_case()
    thick = Volume(case.flair.data[:, :, ::2], AFFINE @ np.diag([1, 1, 2, 1]), name="F")
    (message,) = said(CheckedScan(thick, case.t1[:, :, ::2], case.tissue[:, :, ::2]), "note")
    assert "slices are 8.0 mm apart" in message


def test_enhanced_choroid_plexus_is_seen_on_the_t1():
    def enhance(_, t1, tissue):
        t1[(tissue == Tissue.VENTRICLE) & (np.arange(104)[:, None, None] < 46)] = 140

    (message,) = said(a_case(spoil=enhance), "note")
    assert "contrast-enhanced" in message


def test_clipped_brightness_is_seen_in_the_brain():
    def clip(flair, *_):
        np.minimum(flair, 122, out=flair)

    (message,) = said(a_case(spoil=clip), "warning")
    assert "is clipped" in message


def test_clipped_brightness_is_seen_though_a_file_rounds_it():
    def clip(flair, *_):
        np.minimum(flair, 122 + np.random.default_rng(0).uniform(0, 0.01, flair.shape), out=flair)

    (message,) = said(a_case(spoil=clip), "warning")
    assert "is clipped" in message


def test_motion_is_seen_by_its_streaks_in_the_air():
    """Parts of k-space that belong to a head somewhere else."""

    def shake(flair, _, tissue):
        folds = np.random.default_rng(1).uniform(0.5, 1.5, (26, 26, 1)).repeat(4, 0).repeat(4, 1)
        flair *= np.where(tissue > 0, folds, 1)
        lines = np.fft.fftshift(np.fft.fft2(flair, axes=(0, 1)), axes=1)
        for first, shift in ((20, (3, 2)), (47, (-2, 3)), (70, (2, -3))):
            moved = np.roll(flair, shift, axis=(0, 1))
            lines[:, first:] = np.fft.fftshift(np.fft.fft2(moved, axes=(0, 1)), axes=1)[:, first:]
        flair[:] = np.abs(np.fft.ifft2(np.fft.ifftshift(lines, axes=1), axes=(0, 1)))

    messages = said(a_case(spoil=shake))
    assert any("shows motion" in message for message in messages)


def test_nothing_found_is_no_head():
    case = a_case()
    (message,) = said(replace(case, tissue=np.zeros_like(case.tissue)))
    assert message.startswith("0 mL of brain")
