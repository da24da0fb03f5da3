"""Synthetic images: anatomies, lesions, what a scanner does."""
