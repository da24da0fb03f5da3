"""Models: network, card, weights, inference, calibration and export."""
