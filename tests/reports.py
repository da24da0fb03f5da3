"""Made-up results, as a report shows them."""

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np

from leuko.io.provenance import Finding
from leuko.io.record import (
    AlignmentRecord,
    Bullseye,
    Inputs,
    ModelRecord,
    Quality,
    RegionsRecord,
    RunRecord,
    ScanRecord,
    SettingsRecord,
)
from leuko.lesions.measure import MaskedScan, analyse
from leuko.report.pictures import as_jpeg
from leuko.report.single import report, sheet
from leuko.report.viewer import RIM_KIND, Pane
from leuko.volume import Volume

SHAPE, SPACING = (60, 72, 9), (2.0, 2.0, 6.0)


def a_head(balls=(((20, 30, 4), 4), ((40, 40, 5), 3)), shape=SHAPE, affine=None):
    """FLAIR in 8 bit as a Volume, and the mask of balls: (centre, radius), in voxels."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    middle = (np.array(shape) - 1) / 2
    head = np.linalg.norm((grid - middle) / (0.45 * np.array(shape) + 0.5), axis=-1) < 1
    mask = np.zeros(shape, bool)
    for centre, radius in balls:
        mask |= np.linalg.norm(grid - np.array(centre), axis=-1) < radius
    mask &= head
    flair = np.where(head, 100, 0) + np.where(mask, 80, 0)
    affine = np.diag([*SPACING, 1.0]) if affine is None else affine
    return Volume(flair.astype(np.uint8), affine, name="FLAIR"), mask


def a_pane(flair, mask, t1=None, rims=None):
    images = {"FLAIR": flair.data} | ({"T1": t1} if t1 is not None else {})
    numbers = lesions_of(flair, mask).numbers
    kinds = np.where(np.arange(mask.shape[0])[:, None, None] < 30, 1, 2) * mask
    if rims is not None:
        kinds[rims] = RIM_KIND
    return Pane("FLAIR and T1", flair, images, numbers, kinds.astype(np.uint8))


def lesions_of(flair, mask):
    probability = np.where(mask, 0.8, 0.1)
    case = MaskedScan(flair, None, None, probability, mask, mask)
    return analyse(case, place=None, rule="voxel10", threads=1)


def a_record(flair, mask, **changes):
    """The record of a made-up run with a T1 and regions."""
    ml = flair.ml(mask)
    lobes = ("frontal", "parietal", "temporal", "occipital")
    bullseye = Bullseye(
        shells=("innermost", "inner", "outer", "outermost"),
        sectors=(*(f"{side} {lobe}" for lobe in lobes for side in ("left", "right")), "deep grey"),
        ml=tuple(map(tuple, (np.arange(36).reshape(4, 9) / 630 * ml).tolist())),
    )
    record = RunRecord(
        command="segment",
        mask_sha256="ef" * 32,
        versions={"leuko": "0.1.0", "numpy": "2.0"},
        inputs=Inputs(flair=a_scan("/scans/anna/FLAIR.nii.gz"), t1=a_scan("/scans/anna/T1.nii.gz")),
        model=ModelRecord(name="leuko-base", path="/models/leuko-base", weights_sha256="cd" * 32),
        settings=SettingsRecord(
            threshold=0.4,
            lesion_threshold=0.7,
            smallest_lesion_mm3=10.0,
            exclude=None,
            rims="separate",
            alignment="auto",
            bias_correction=False,
            rule="voxel10",
            strict=False,
            device="cpu",
        ),
        findings=(),
        checks=("volume of the brain", "motion"),
        volume_ml=ml,
        volume_interval_ml=(ml / 2, ml * 2),
        quality=Quality(predicted_dice=0.8, interval=(0.7, 0.9)),
        rims="separate",
        wmh_ml=ml,
        rims_ml=1.5,
        wmh_and_rims_ml=ml + 1.5,
        lesions=len(lesions_of(flair, mask).lesions),
        intracranial_ml=1400.0,
        volume_percent_icv=ml / 14,
        outside_brain=None,
        excluded_ml=None,
        tissue_ml={"csf": 200.0, "wmh": ml},
        regions=RegionsRecord(
            rule="voxel10",
            rule_text="periventricular: voxels up to 10 mm from the lateral ventricles",
            periventricular_ml=ml / 2,
            deep_ml=ml / 2,
            infratentorial_ml=0.0,
            confluent_ml=0.0,
            left_ml=ml / 4,
            right_ml=3 * ml / 4,
            bullseye=bullseye,
        ),
        alignment=AlignmentRecord(
            moved_mm=1.5,
            off_mm=None,
            sharpness=0.5,
            mutual_information_before=0.2,
            mutual_information=0.4,
            flair_to_t1=tuple(map(tuple, np.eye(4).tolist())),
        ),
        seconds={"read": 0.1, "predict": 2.0},
    )
    return replace(record, **changes)


def a_scan(path, sha256="ab" * 32):
    """A scan of a made-up run."""
    return ScanRecord(path=path, sha256=sha256, series=None)


def a_report(folder, flair, mask, band=None, **changes):
    """The page of a result, with rims in a band, and its picture in `folder`."""
    record, pane = a_record(flair, mask, **changes), a_pane(flair, mask, t1=flair.data, rims=band)
    picture = sheet(record, pane)
    picture.save(folder / "qc.png")
    return report(record, lesions_of(flair, mask).lesions, pane, as_jpeg(picture))


def finding(text, level="warning", code="cut-off"):
    """A finding of a made-up check."""
    return Finding(level, code, text)


class _Policy(HTMLParser):
    """The policy of a page, and whatever in it could run or set a style."""

    def __init__(self, html):
        super().__init__()
        self.policy, self.inline, self.attributes, self._kind = "", [], [], None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"]
        if tag in ("script", "style") and given.get("type") != "application/json":
            self._kind = tag
        self.attributes += [name for name in given if name == "style" or name.startswith("on")]

    def handle_endtag(self, _):
        self._kind = None

    def handle_data(self, data):
        if self._kind:
            self.inline.append((self._kind, data))


def assert_runs_only_its_own(html):
    """The policy of a page allows its one script and its one style, by their hashes."""
    page = _Policy(html)
    assert page.attributes == []
    assert sorted(kind for kind, _ in page.inline) == ["script", "style"]
    rules = dict(re.findall(r"([\w-]+) ([^;]+)", page.policy))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    for kind, content in page.inline:
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[f"{kind}-src"] == f"'sha256-{digest}'"
    assert "unsafe" not in page.policy
    assert "http" not in page.policy
