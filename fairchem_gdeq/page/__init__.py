"""Pages to look at after a run: one HTML file each, which needs no other file and no network."""
