"""Of ``testing``: what needs fairchem-core 2."""
