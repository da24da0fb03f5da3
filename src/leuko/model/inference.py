"""From two scans to a prediction: bias correction, registration of the T1, the network."""

from dataclasses import dataclass

from leuko.errors import LeukoError
from leuko.io.provenance import Finding, Level, Stopwatch, tell
from leuko.model.predict import Prediction, predicted
from leuko.model.runtime import Model
from leuko.preprocessing.registration import Alignment, Mode, align
from leuko.preprocessing.simpleitk import without_bias
from leuko.preprocessing.slices import Pair
from leuko.volume import Volume


@dataclass(frozen=True, eq=False)
class Inference:
    """The output of a model for one brain, before masks are drawn."""

    flair: Volume  # as the model saw it: bias corrected, if asked for
    t1: Volume | None  # likewise, registered to the FLAIR
    pair: Pair
    prediction: Prediction
    alignment: Alignment | None  # of the T1; None without one


def infer(
    flair: Volume,
    t1: Volume | None,
    model: Model,
    *,
    alignment: Mode,
    bias_correction: bool,
    threads: int,
    findings: list[Finding],
    watch: Stopwatch,
) -> Inference:
    """Correct the bias fields with N4 (if asked for), register the T1, run the model.

    Warnings are added to `findings`, seconds to `watch`. Raises LeukoError if the T1 could not be
    registered, and as `Pair.of`.
    """
    preparation = model.card.preparation
    if bias_correction:
        with watch.stage("correct bias"):
            flair = without_bias(flair, threads=threads)
            t1 = t1 and without_bias(t1, threads=threads)
    moved = None
    if t1 is not None and preparation.uses_t1:
        with watch.stage("align"):
            moved = _alignment(flair, t1, alignment, threads, findings)
            t1 = moved.apply(t1)
    with watch.stage("prepare"):
        pair = Pair.of(flair, t1, preparation)
    return Inference(flair, t1, pair, predicted(pair, model, watch), moved)


def _alignment(
    flair: Volume, t1: Volume, mode: Mode, threads: int, findings: list[Finding]
) -> Alignment:
    """The T1's registration. Raises LeukoError if it failed, unless `mode` is "never"."""
    found = align(flair, t1, mode=mode, threads=threads)
    doubt = found.doubt()
    if doubt is None:
        return found
    verb = "is not registered" if mode == "never" else "could not be registered"
    text = (
        f"{t1.name} {verb} to {flair.name}: {doubt}; check that both are of one person and not "
        "swapped"
    )
    if mode == "never":
        level: Level = "do not use" if found.is_hopeless else "warning"
        tell(findings, Finding(level, "alignment", text))
        return found
    raise LeukoError(
        f"{text}; or give the FLAIR alone, or --align never if you know that they are aligned"
    )
