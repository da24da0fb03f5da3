"""Training: data, recipes, the loop, cross-validation, adaptation."""
