"""Reports: figures, viewer, the page of one scan."""
