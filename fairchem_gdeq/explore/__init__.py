"""Label what a model meets: frames of its own relaxations, with forces of a reference.

    python -m fairchem_gdeq.explore STARTS MODEL DST --calculator CLASS KEY=VALUE ...

``paths`` relaxes and chooses frames, ``records`` keeps them, a file a structure; ``labels`` calls the
calculator, ``exchange`` writes frames for another program and reads its forces; ``pack`` makes the
force data set. fairchem-core 2.
"""

from fairchem_gdeq.explore.exchange import read_labels, write_frames
from fairchem_gdeq.explore.labels import Reference, label
from fairchem_gdeq.explore.pack import Summary, pack
from fairchem_gdeq.explore.paths import Settings, Walker, walk
from fairchem_gdeq.explore.records import Folder, Record
from fairchem_gdeq.explore.starts import Start, named, open_starts

__all__ = [
    "Folder",
    "Record",
    "Reference",
    "Settings",
    "Start",
    "Summary",
    "Walker",
    "label",
    "named",
    "open_starts",
    "pack",
    "read_labels",
    "walk",
    "write_frames",
]
