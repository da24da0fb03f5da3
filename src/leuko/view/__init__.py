"""A local page to look at results closely and to correct masks."""
