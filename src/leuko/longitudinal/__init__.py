"""Two scans of one brain over time: midspace, changes, report."""
