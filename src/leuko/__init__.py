"""Finds white matter hyperintensities in brain MRI. Start with `leuko.segment` or the README."""

import importlib.metadata

__version__ = importlib.metadata.version("leuko")
