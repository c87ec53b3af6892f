"""Policy: who may do what with which key, where and when, and how often. Middle floor, and pure.

One idea per module: what there is to allow (`catalogue`), the hours of a week (`week`), one rule (`rules`), the
file that holds them (`file`), the compiled form that decides (`table`), a decision in words (`explain`), how
often (`limits`), and what is watched of single cards (`watch`). Nothing here reads files, looks at a clock,
draws randomness or knows a message of the wire: all of that is handed in.
"""

from keyd.policy.catalogue import NO_KEY, Business, Catalogue, Shape
from keyd.policy.explain import Explanation, explain
from keyd.policy.file import Fault, PolicyError, PolicyFile, read_policy
from keyd.policy.limits import Asker, Limiter, Quotas
from keyd.policy.table import FOREVER, Allowed, Policy
from keyd.policy.watch import Strange, Watch

__all__ = [
    "FOREVER",
    "NO_KEY",
    "Allowed",
    "Asker",
    "Business",
    "Catalogue",
    "Explanation",
    "Fault",
    "Limiter",
    "Policy",
    "PolicyError",
    "PolicyFile",
    "Quotas",
    "Shape",
    "Strange",
    "Watch",
    "explain",
    "read_policy",
]
