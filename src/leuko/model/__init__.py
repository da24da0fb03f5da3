"""The network: its card, its weights, how it runs, how sure it is."""
