"""A paragraph on the method for a paper, with its references, from the record of a run."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from leuko.errors import LeukoError
from leuko.io.outputs import RECORD_FILE
from leuko.io.provenance import Rims, versions
from leuko.io.record import RunRecord
from leuko.model.card import ModelCard, load_card
from leuko.model.weights import DEFAULT, find

# By the words that cite them. The first is also in CITATION.cff.
REFERENCES = {
    "Xu et al. 2018": "Xu Y, Géraud T, Puybareau É, Bloch I, Chazalon J (2018). White Matter "
    "Hyperintensities Segmentation in a Few Seconds Using Fully Convolutional Network and Transfer "
    "Learning. Brainlesion (BrainLes 2017). doi:10.1007/978-3-319-75238-9_42",
    "Simonyan and Zisserman 2015": "Simonyan K, Zisserman A (2015). Very Deep Convolutional "
    "Networks for Large-Scale Image Recognition. International Conference on Learning "
    "Representations. doi:10.48550/arXiv.1409.1556",
    "Maninis et al. 2016": "Maninis K-K, Pont-Tuset J, Arbeláez P, Van Gool L (2016). Deep Retinal "
    "Image Understanding. Medical Image Computing and Computer-Assisted Intervention (MICCAI). "
    "doi:10.1007/978-3-319-46723-8_17",
    "Mattes et al. 2003": "Mattes D, Haynor DR, Vesselle H, Lewellen TK, Eubank W (2003). PET-CT "
    "Image Registration in the Chest Using Free-form Deformations. IEEE Transactions on Medical "
    "Imaging 22(1), 120-128. doi:10.1109/TMI.2003.809072",
    "Tustison et al. 2010": "Tustison NJ, Avants BB, Cook PA, Zheng Y, Egan A, Yushkevich PA, "
    "Gee JC (2010). N4ITK: Improved N3 Bias Correction. IEEE Transactions on Medical Imaging "
    "29(6), 1310-1320. doi:10.1109/TMI.2010.2046908",
    "Tibshirani et al. 2019": "Tibshirani RJ, Foygel Barber R, Candès EJ, Ramdas A (2019). "
    "Conformal Prediction Under Covariate Shift. Advances in Neural Information Processing Systems "
    "32. doi:10.48550/arXiv.1904.06019",
}
OWN_REFERENCE = "The Leuko developers. Leuko, version {version} [computer software]."
HASH_DIGITS = 12  # of a SHA-256, enough to tell weights apart
RIMS: dict[Rims, str] = {
    "separate": "were segmented separately and did not count as WMH",
    "include": "counted as WMH",
    "exclude": "did not count as WMH",
}
CHANNELS = {
    "flair-t1-residue": "the FLAIR, the T1 and the residue of an area opening of the FLAIR form",
    "flair-3-slices": "the FLAIR of the slice and of its two neighbours form",
    "t1-3-slices": "the T1 of the slice and of its two neighbours form",
}
SOFTWARE = ("python", "numpy", "scipy", "SimpleITK", "onnxruntime", "torch")


def citation(run: Path | None = None) -> str:
    """A paragraph for the methods section of a paper, and the references that it cites.

    `run` is a record, `run.json`, or the folder that holds it: the paragraph then describes that
    run. None: the bundled model with default settings. Raises LeukoError if there is no record.
    """
    if run is None:
        card = load_card(find(DEFAULT))
        return _with_references(_default(card), versions()["leuko"])
    record = RunRecord.read(run / RECORD_FILE if run.is_dir() else run)
    return _with_references(_described(record, _card(record)), record.leuko_version)


def _with_references(sentences: Iterable[str], version: str) -> str:
    paragraph = " ".join(sentences)
    cited = [text for words, text in REFERENCES.items() if words in paragraph]
    listed = sorted([OWN_REFERENCE.format(version=version), *cited])
    return "\n".join([paragraph, "", "References", *(f"- {text}" for text in listed)])


def _card(record: RunRecord) -> ModelCard | None:
    """The card of the record's model; None if the model is no longer there, or has changed."""
    try:
        card = load_card(Path(record.model.path) if record.model.path else find(record.model.name))
    except LeukoError:
        return None
    return card if card.weights_sha256 == record.model.weights_sha256 else None


def _default(card: ModelCard) -> Iterator[str]:
    used, limits = versions(), card.limits()
    model = _model(card.name, card.weights_sha256)
    leuko = f"Leuko {used['leuko']}"
    yield f"White matter hyperintensities (WMH) were segmented with {leuko} and its model {model}."
    yield _network(CHANNELS[card.preparation.channels])
    yield (
        "If a T1 was given, its alignment with the FLAIR was checked by mutual information (Mattes "
        "et al. 2003); if needed, it was registered rigidly to the FLAIR."
    )
    yield _limits(limits.threshold, limits.lesion_threshold, limits.smallest_mm3, card)
    yield f"Normal caps and rims of the ventricles {RIMS['separate']}."
    yield _software(used)


def _described(record: RunRecord, card: ModelCard | None) -> Iterator[str]:
    settings, t1 = record.settings, record.inputs.t1
    model = _model(record.model.name, record.model.weights_sha256)
    leuko, scans = f"Leuko {record.leuko_version}", "FLAIR and T1" if t1 else "FLAIR alone"
    if record.command == "segment":
        yield (
            f"White matter hyperintensities (WMH) were segmented on {scans} with {leuko} and its "
            f"model {model}."
        )
    else:
        source = "corrected by a reader" if record.edited else "given"
        yield (
            f"Masks of white matter hyperintensities (WMH) that were {source} were measured with "
            f"{leuko}; tissues were segmented on {scans} with its model {model}."
        )
    if card is None:
        yield _network(None)
    elif t1 is None and card.preparation.channels == "flair-t1-residue":
        yield _network("the FLAIR and the residue of its area opening, without a T1, form")
    else:
        yield _network(CHANNELS[card.preparation.channels])
    if record.alignment is not None:
        yield _alignment(record.alignment.moved_mm, used=settings.alignment != "never")
    yield (
        "Bias fields were corrected with N4 (Tustison et al. 2010)."
        if settings.bias_correction
        else "Bias fields were not corrected."
    )
    if record.command == "segment":
        smallest = settings.smallest_lesion_mm3
        yield _limits(settings.threshold, settings.lesion_threshold, smallest, card)
        if record.rims is not None:
            yield f"Normal caps and rims of the ventricles {RIMS[record.rims]}."
    if settings.exclude is not None:
        yield "Voxels within an exclusion mask did not count as WMH."
    if record.regions is not None:
        yield f"Rule for regions, {record.regions.rule}: {record.regions.rule_text}."
    if record.volume_interval_ml is not None:
        yield (
            "Volumes have conformal 90 % intervals (Tibshirani et al. 2019), calibrated on scans "
            "that the model was not trained on."
        )
    yield _software(record.versions)


def _model(name: str, sha256: str) -> str:
    return f"{name} (SHA-256 of the weights: {sha256[:HASH_DIGITS]}...)"


def _network(image: str | None) -> str:
    """`image`: what forms the colour image of a slice; None if it is not known."""
    network = (
        "a fully convolutional network based on VGG-16 (Simonyan and Zisserman 2015) with a "
        "specialised layer on each stage (Maninis et al. 2016)"
    )
    steps = (
        f"{image} a colour image of each slice, which is labelled by {network}"
        if image
        else f"each slice is labelled by {network}"
    )
    return f"Leuko implements the method of Xu et al. 2018: {steps}."


def _alignment(moved_mm: float, *, used: bool) -> str:
    if not used:
        return "The T1 was used at the position that its header gives."
    if moved_mm == 0:
        return (
            "The T1 was already aligned with the FLAIR, as checked by mutual information (Mattes "
            "et al. 2003)."
        )
    return (
        "The T1 was registered rigidly to the FLAIR by mutual information (Mattes et al. 2003), "
        f"which moved it by {moved_mm:.1f} mm on average."
    )


def _limits(
    threshold: float, lesion_threshold: float, smallest_mm3: float, card: ModelCard | None
) -> str:
    edges = "after refining the edges of lesions by the FLAIR, " if card and card.edges else ""
    return (
        f"WMH are voxels with a probability of at least {threshold:g}, {edges}in lesions of at "
        f"least {smallest_mm3:g} mm³ whose highest probability is at least {lesion_threshold:g}."
    )


def _software(used: Mapping[str, str]) -> str:
    return f"Software: {', '.join(f'{name} {used[name]}' for name in SOFTWARE if name in used)}."
