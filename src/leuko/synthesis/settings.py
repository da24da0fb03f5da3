"""All settings of the synthesis, which models trained with synthetic slices keep in their card."""

from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any

from leuko.synthesis.acquisition import AcquisitionSettings, ExtractionSettings
from leuko.synthesis.labels import LabelSettings
from leuko.synthesis.lesions import LesionSettings
from leuko.synthesis.painting import PaintingSettings
from leuko.synthesis.random_fields import NoiseSettings
from leuko.synthesis.sampling import SamplingSettings


@dataclass(frozen=True)
class SynthesisSettings:
    """Ranges, probabilities and constants of synthetic scans; `dataclasses.asdict` gives JSON."""

    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    lesions: LesionSettings = field(default_factory=LesionSettings)
    noise: NoiseSettings = field(default_factory=NoiseSettings)
    labels: LabelSettings = field(default_factory=LabelSettings)
    painting: PaintingSettings = field(default_factory=PaintingSettings)
    acquisition: AcquisitionSettings = field(default_factory=AcquisitionSettings)
    extraction: ExtractionSettings = field(default_factory=ExtractionSettings)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "SynthesisSettings":
        """Settings from their JSON object; fields that it lacks keep their defaults.

        Raises AttributeError or KeyError for a setting that does not exist.
        """
        settings: SynthesisSettings = _read(cls(), content)
        return settings


def _read(default: Any, content: Any) -> Any:
    """A JSON value in the type of its default."""
    if is_dataclass(default) and not isinstance(default, type):
        return replace(default, **{n: _read(getattr(default, n), v) for n, v in content.items()})
    if isinstance(default, Mapping):
        return {name: _read(default[name], value) for name, value in content.items()}
    if isinstance(default, tuple):
        kind = type(default)
        return kind(*content) if hasattr(kind, "_fields") else kind(content)
    return content
