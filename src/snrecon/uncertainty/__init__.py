"""What is uncertain besides thermal noise: posterior spread, networks that disagree, risk.

Thermal noise is the spread over repeated scans; the spread of a method's own draws at fixed data is
something else. :func:`decompose` shows how the two add up, :func:`calibration` what either has to
do with the error against a reference.
"""

from snrecon.uncertainty.calibration import Calibration, Estimate, calibration
from snrecon.uncertainty.decompose import Decomposition, decompose
from snrecon.uncertainty.dropout import Dropout
from snrecon.uncertainty.ensemble import ensemble
from snrecon.uncertainty.posterior import posterior
from snrecon.uncertainty.risk_estimate import RiskEstimate
from snrecon.uncertainty.spread_map import SpreadMap
from snrecon.uncertainty.sure import sure

__all__ = [
    "Calibration",
    "Decomposition",
    "Dropout",
    "Estimate",
    "RiskEstimate",
    "SpreadMap",
    "calibration",
    "decompose",
    "ensemble",
    "posterior",
    "sure",
]
