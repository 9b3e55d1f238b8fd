"""After a run: what tuning cost, by all that base and tuned model can be compared with."""

from fairchem_gdeq.audit.relaxing import potential_of
from fairchem_gdeq.audit.run import Auditor, audit
from fairchem_gdeq.audit.settings import NVE, Audit

__all__ = ["NVE", "Audit", "Auditor", "audit", "potential_of"]
