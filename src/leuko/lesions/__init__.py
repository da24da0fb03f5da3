"""Lesions: masks from probabilities, components, location, quality checks."""
