"""Masks against references: labels, measures, tables."""
