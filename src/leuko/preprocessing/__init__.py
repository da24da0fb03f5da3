"""Before the network: registration, SimpleITK, and scans as slices."""
