"""Before a run: can tuning help this potential on these structures, and with which settings?

The questions are the conditions of the papers' regime map (Table 6 of the G-DEQ paper).
"""

from fairchem_gdeq.diagnose.examine import Finding, Probe, examine
from fairchem_gdeq.diagnose.run import cost_of_step, diagnose

__all__ = ["Finding", "Probe", "cost_of_step", "diagnose", "examine"]
