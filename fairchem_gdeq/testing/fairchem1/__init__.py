"""Of ``testing``: what needs fairchem-core 1.10."""
