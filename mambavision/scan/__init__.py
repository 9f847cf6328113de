"""The selective scan: one operator, `selective_scan`, and the kernels behind it.

Shape suffixes used in this folder: B batch, D channels, L steps (tokens of one window), N states of a channel.
"""

from mambavision.scan.op import BACKENDS, scan_path, selective_scan
from mambavision.scan.reference import reference_scan

__all__ = ["BACKENDS", "reference_scan", "scan_path", "selective_scan"]
