"""Grey values of a synthetic FLAIR and T1, before acquisition. White matter is about 1."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from leuko.io.tissue import Tissue
from leuko.synthesis.anatomy import INDEX, STRUCTURES
from leuko.synthesis.labels import Labelled
from leuko.synthesis.random_fields import Noise, blurred
from leuko.synthesis.ranges import Patches, Range, Unevenness
from leuko.synthesis.sampling import Choice, Samples, slabs, value_of
from leuko.volume import Array

FLUIDS = ("csf", "ventricle")
BELOW_TENTORIUM = ("brain stem", "cerebellar white")
ENHANCED = ("vessel", "choroid plexus", "dura")  # by contrast medium


@dataclass(frozen=True)
class TextureSettings:
    """Variation of grey values within a structure."""

    spread: Range = Range(0.005, 0.045)  # of coarse noise, as part of the grey value, in the brain
    cortex_factor: float = 1.5  # cortex varies more
    outer_spread: float = 0.25  # outside the brain
    fine_part: float = 0.6  # of fine noise, coarse noise being 1


@dataclass(frozen=True)
class FlairSettings:
    """FLAIR: grey values, bright structures that are not lesions, and lesions.

    Heights are added to an image whose white matter is 1. Where no other reason is given, a range
    was chosen to cover clinical scans.
    """

    grey: Mapping[str, Range] = field(
        default_factory=lambda: {s.name: Range(*s.flair) for s in STRUCTURES}
    )
    # Cortex is bright in places: insula, cingulate, hippocampus.
    cortex_probability: float = 0.7
    cortex: Range = Range(0, 0.35)
    cortex_patches: Patches = Patches(coarse=0.4, fine=1, threshold=0.3, highest=1.2)
    posterior: Range = Range(0, 0.1)  # white matter is brighter far back
    # A halo of white matter around the ventricles.
    halo_probability: float = 0.6
    halo: Range = Range(0, 0.18)
    halo_mm: Range = Range(3, 9)  # to where it has fallen to 1 / e
    # The optic radiation: a band beside the back of the ventricles.
    radiation_probability: float = 0.35
    radiation: Range = Range(0.05, 0.3)
    radiation_mm: Range = Range(3, 10)  # from the ventricles
    radiation_width_mm: Range = Range(2, 4)
    radiation_begins: float = 0.62  # as part of the brain's length from its front
    radiation_softness: float = 0.04  # of its beginning, as part of the brain's length
    radiation_unevenness: Unevenness = Unevenness(0.5)
    # "Dirty" white matter: broad and faint, without an edge.
    dirty_probability: float = 0.5
    dirty: Range = Range(0, 0.22)
    dirty_patches: Patches = Patches(coarse=0.7, fine=0.3)
    dirty_mm: float = 25  # from the ventricles to where it has fallen to 1 / e
    # The lining of the ventricles: a bright line, thinner than a millimetre and a half.
    lining_probability: float = 0.3
    lining: Range = Range(0, 0.8)
    lining_mm: Range = Range(0.5, 0.9)
    lining_inside_mm: float = 0.3  # it begins inside the ventricle
    lining_unevenness: Unevenness = Unevenness(0.5)
    # Glands, vessels, mucosa and marrow are bright in places.
    outer_probability: float = 0.6
    outer: Range = Range(0, 1.1)
    outer_patches: Patches = Patches(coarse=0.5, fine=1, threshold=0.5, highest=1.2)
    # Brain stem and cerebellum are uneven.
    below_probability: float = 0.5
    below: Range = Range(0, 0.15)
    below_patches: Patches = Patches(coarse=1, fine=1)
    # Flow in the CSF.
    flow_probability: float = 0.45
    flow: Range = Range(0.2, 1.3)
    flow_patches: Patches = Patches(coarse=1, fine=0.5, threshold=0.9, highest=1)
    # Lesions.
    lesion: Range = Range(1.08, 1.7)  # as a multiple of the brighter of cortex and thalamus
    least_lesion: float = 1.22  # readers do not see dimmer lesions, so they are not made
    lesion_unevenness: Range = Range(0, 0.2)  # of coarse and of fine noise
    haze_probability: float = 0.5  # around lesions
    haze: Range = Range(0, 0.4)  # as part of the lesion's brightness
    haze_px: Range = Range(2, 4)
    # Cavities: CSF in the middle of large lesions.
    cavity_probability: float = 0.35
    cavity: Range = Range(0.3, 1)
    cavity_px: float = 2.0  # standard deviation of the blur that finds the middle of a lesion
    cavity_begins: float = 0.6  # blurred lesion at the edge of a cavity,
    cavity_softness: float = 0.3  # and how much more it is where the cavity is complete
    cavity_damage: float = 0.8  # `Samples.damage` above which tissue is lost


@dataclass(frozen=True)
class T1Settings:
    """T1: grey values, contrast medium, and lesions. Chosen to cover clinical scans."""

    grey: Mapping[str, Range] = field(
        default_factory=lambda: {s.name: Range(*s.t1) for s in STRUCTURES}
    )
    enhanced_probability: float = 0.25  # with contrast medium
    enhanced: Range = Range(1.0, 2.2)  # grey value of vessels, choroid plexus and dura
    uneven_probability: float = 0.4  # darker white matter in places, lesion or not
    uneven: Range = Range(0, 0.15)
    uneven_patches: Patches = Patches(coarse=0.6, fine=0.4)
    lesion: Range = Range(0.6, 1.0)  # grey value: isointense to clearly dark
    lesion_unevenness: Range = Range(0, 0.2)
    hole: Range = Range(0, 0.55)  # where tissue is lost, lesions are darker: "black holes"
    hole_damage: float = 0.6  # `Samples.damage` above which tissue is lost
    edge_px: Range = Range(0.4, 1.2)


@dataclass(frozen=True)
class PaintingSettings:
    """Grey values of FLAIR and T1."""

    texture: TextureSettings = TextureSettings()
    flair: FlairSettings = field(default_factory=FlairSettings)
    t1: T1Settings = field(default_factory=T1Settings)


def paint_flair(
    samples: Samples,
    labelled: Labelled,
    choice: Choice,
    rng: np.random.Generator,
    noise: Noise,
    *,
    settings: PaintingSettings,
) -> Tensor:
    """A random FLAIR (N, H, W), in the brain and around it."""
    means = _means(settings.flair.grey, rng)
    fields = noise()
    image = _painted(samples.structure, means, fields, rng, settings.texture)
    image = _with_bright_brain(image, samples, fields, rng, settings.flair)
    image = image + labelled.rim_excess
    image = _with_bright_surroundings(image, samples.structure, fields, rng, settings.flair)
    image = _with_lesions(image, means, samples, labelled, fields, rng=rng, settings=settings.flair)
    return slabs(image, choice)


def paint_t1(
    samples: Samples,
    choice: Choice,
    rng: np.random.Generator,
    noise: Noise,
    *,
    settings: PaintingSettings,
) -> Tensor:
    """A random T1 (N, H, W). Its lesions are isointense to dark, or "black holes"."""
    own = settings.t1
    means = _means(own.grey, rng)
    if rng.random() < own.enhanced_probability:
        for name in ENHANCED:
            means[INDEX[name]] = own.enhanced.draw(rng)
    coarse, fine = noise()
    image = _painted(samples.structure, means, (coarse, fine), rng, settings.texture)
    if rng.random() < own.uneven_probability:
        darker = own.uneven.draw(rng) * own.uneven_patches.of(coarse, fine)
        image = image - _white(samples.structure) * darker
    hole = own.hole.draw(rng) * _lost(samples.damage, own.hole_damage)
    level = own.lesion.draw(rng) * (1 + own.lesion_unevenness.draw(rng) * fine) - hole
    weight = blurred(samples.lesion, own.edge_px.draw(rng))
    level = torch.minimum(level.clamp(min=means[INDEX["csf"]]), image)
    return slabs(image + weight * (level - image), choice)


Fields = tuple[Tensor, Tensor]  # coarse and fine noise


def _with_bright_brain(
    image: Tensor,
    samples: Samples,
    fields: Fields,
    rng: np.random.Generator,
    settings: FlairSettings,
) -> Tensor:
    """With bright cortex and white matter that are no lesions."""
    coarse, fine = fields
    height = settings.cortex.draw(rng) * (rng.random() < settings.cortex_probability)
    cortex = samples.structure == INDEX["cortex"]
    image = image + cortex * (height * settings.cortex_patches.of(coarse, fine))
    white = _white(samples.structure)
    outside = samples.ventricle_mm.clamp(min=0)
    image = image + white * (settings.posterior.draw(rng) * (2 * samples.back - 1).clamp(0, 1))
    if rng.random() < settings.halo_probability:
        height = settings.halo.draw(rng)
        image = image + white * (height * torch.exp(-outside / settings.halo_mm.draw(rng)))
    if rng.random() < settings.radiation_probability:
        from_middle_mm = outside - settings.radiation_mm.draw(rng)
        band = torch.exp(-((from_middle_mm / settings.radiation_width_mm.draw(rng)) ** 2))
        behind = samples.back - settings.radiation_begins
        band = band * torch.sigmoid(behind / settings.radiation_softness)
        band = band * settings.radiation_unevenness.factor(coarse, fine).clamp(min=0)
        image = image + white * (settings.radiation.draw(rng) * band)
    if rng.random() < settings.dirty_probability:
        dirt = settings.dirty_patches.of(coarse, fine) * torch.exp(-outside / settings.dirty_mm)
        image = image + white * (settings.dirty.draw(rng) * dirt)
    if rng.random() < settings.lining_probability:
        line = torch.exp(-((outside / settings.lining_mm.draw(rng)) ** 2))
        line = line * (samples.ventricle_mm > -settings.lining_inside_mm)
        uneven = settings.lining_unevenness.factor(coarse, fine).clamp(min=0)
        image = image + white * (settings.lining.draw(rng) * uneven) * line
    return image


def _with_bright_surroundings(
    image: Tensor,
    structure: Tensor,
    fields: Fields,
    rng: np.random.Generator,
    settings: FlairSettings,
) -> Tensor:
    """With patches outside the brain, below the tentorium and in the CSF."""
    outer = [s.tissue == Tissue.BACKGROUND and s.name != "air" for s in STRUCTURES]
    for probability, height, patches, where in (
        (settings.outer_probability, settings.outer, settings.outer_patches, outer),
        (
            settings.below_probability,
            settings.below,
            settings.below_patches,
            _named(BELOW_TENTORIUM),
        ),
        (settings.flow_probability, settings.flow, settings.flow_patches, _named(FLUIDS)),
    ):
        if rng.random() < probability:
            bright = height.draw(rng) * patches.of(*fields)
            image = image + value_of(where, structure) * bright
    return image


def _with_lesions(
    image: Tensor,
    means: Array,
    samples: Samples,
    labelled: Labelled,
    fields: Fields,
    *,
    rng: np.random.Generator,
    settings: FlairSettings,
) -> Tensor:
    """With lesions that are brighter than cortex and thalamus, and below the tentorium brighter
    than their surroundings."""
    coarse, fine = fields
    brightest = max(means[INDEX["cortex"]], means[INDEX["thalamus"]])
    unevenness = settings.lesion_unevenness
    uneven = 1 + unevenness.draw(rng) * coarse + unevenness.draw(rng) * fine
    level = (brightest * settings.lesion.draw(rng) * uneven).clamp(min=settings.least_lesion)
    below = value_of(_named(BELOW_TENTORIUM), samples.structure)
    level = torch.maximum(level, below * settings.least_lesion * image)
    weight = labelled.lesion
    if rng.random() < settings.haze_probability:
        haze = blurred(labelled.lesion, settings.haze_px.draw(rng)) * _white(samples.structure)
        weight = torch.maximum(weight, haze * settings.haze.draw(rng))
    image = torch.where(image > level, image, image + weight * (level - image))
    if rng.random() < settings.cavity_probability:
        core = blurred(labelled.lesion, settings.cavity_px) - settings.cavity_begins
        inner = (core / settings.cavity_softness).clamp(0, 1)
        lost = _lost(samples.damage, settings.cavity_damage)
        cavity = inner * lost * settings.cavity.draw(rng)
        image = image + cavity * (means[INDEX["csf"]] - image)
    return image


def _painted(
    structure: Tensor,
    means: Array,
    fields: Fields,
    rng: np.random.Generator,
    settings: TextureSettings,
) -> Tensor:
    """Each structure at its grey value, varied by coarse and fine noise."""
    coarse, fine = fields
    brain = np.array([s.tissue > Tissue.BACKGROUND for s in STRUCTURES])
    spread = np.where(brain, settings.spread.draw(rng), settings.outer_spread)
    spread[INDEX["cortex"]] *= settings.cortex_factor
    far = means * spread * rng.normal(size=len(STRUCTURES))
    near = settings.fine_part * means * spread * rng.normal(size=len(STRUCTURES))
    return (
        value_of(means, structure)
        + value_of(far, structure) * coarse
        + value_of(near, structure) * fine
    )


def _means(ranges: Mapping[str, Range], rng: np.random.Generator) -> Array:
    """A random grey value of each structure."""
    return np.array([ranges[s.name].draw(rng) for s in STRUCTURES])


def _lost(damage: Tensor, begins: float) -> Tensor:
    """The part of the tissue that is lost: 0 where it begins, 1 half a unit above."""
    return (2 * (damage - begins)).clamp(0, 1)


def _white(structure: Tensor) -> Tensor:
    return value_of([s.tissue == Tissue.WHITE for s in STRUCTURES], structure)


def _named(names: tuple[str, ...]) -> list[bool]:
    return [s.name in names for s in STRUCTURES]
