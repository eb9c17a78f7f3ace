"""Policies: what one is, a set of independent ones for every task of the twin, and their making.

from worldline import policies

policies.make("runs/policies", tasks=("touch",))
policy = policies.load("runs/policies/touch/convolution-160")
"""

from worldline.judges.success import load_success
from worldline.policies.folder import found, identity, load, save
from worldline.policies.make import BUILT, MakeOptions, make
from worldline.policies.starts import STARTS

__all__ = ["BUILT", "STARTS", "MakeOptions", "found", "identity", "load", "load_success", "make", "save"]
