"""Synthetic scans: anatomies, lesions, contrast, acquisition."""
