"""Many structures at once: relaxations in packs of bounded size, from which structures leave."""
