"""Preprocessing: registration of T1 to FLAIR, bias correction, and slices for the network."""
