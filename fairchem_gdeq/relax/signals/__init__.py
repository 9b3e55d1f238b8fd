"""Algorithm 1 and the training signals it is compared with.

A signal adds its parameter gradient to ``.grad`` and returns a ``SignalReport``. The gradients of
the two phases are decoupled (eq. 5): the equilibrium phase starts from a detached X_K.
"""

from fairchem_gdeq.relax.signals.base import SIGNALS, Signal, SignalReport, make_signal
from fairchem_gdeq.relax.signals.bptt import BPTT
from fairchem_gdeq.relax.signals.coupled import Coupled
from fairchem_gdeq.relax.signals.direct import Direct
from fairchem_gdeq.relax.signals.ft_static import FTStatic
from fairchem_gdeq.relax.signals.gdeq import GDEQ
from fairchem_gdeq.relax.signals.implicit import Implicit
from fairchem_gdeq.relax.signals.truncated_bptt import TruncatedBPTT

__all__ = [
    "BPTT",
    "GDEQ",
    "SIGNALS",
    "Coupled",
    "Direct",
    "FTStatic",
    "Implicit",
    "Signal",
    "SignalReport",
    "TruncatedBPTT",
    "make_signal",
]
