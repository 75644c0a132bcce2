"""What people look at: text for the terminal and figures."""

from __future__ import annotations

from snrecon.report.agreement import Agreement, agreement
from snrecon.report.figure import figure
from snrecon.report.mask_picture import mask_picture
from snrecon.report.result_text import describe_result
from snrecon.report.scan_text import describe_scan

__all__ = [
    "Agreement",
    "agreement",
    "describe_result",
    "describe_scan",
    "figure",
    "mask_picture",
]
