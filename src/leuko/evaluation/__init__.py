"""Evaluation of masks against references: labels, measures, tables."""
