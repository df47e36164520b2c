"""Checks that a user runs on a machine of his own, to know that the promises of docs/soundness.md hold there.

A file for each subject: `philox`, `noise`, `laws`, `kernels`, `levels`, `rounding` and `rows`. Each makes checks, small
functions that say what they found, and holds the package against what shares no code with it: `definition` in integers
and mpmath, published answers, exact probabilities, float64. `suite` runs them.
"""

from .effort import FULL, QUICK, Effort
from .records import FAILED, PASSED, SKIPPED, Record
from .suite import every_check, recorded

__all__ = ["FAILED", "FULL", "PASSED", "QUICK", "SKIPPED", "Effort", "Record", "every_check", "recorded"]
