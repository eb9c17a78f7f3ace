"""Every study of an evaluation, one file each; they are in the table (`STUDIES`) when this is imported."""

from worldline.evaluation import conditions
from worldline.evaluation.studies import audit, drift, inverse_dynamics

__all__ = ["audit", "conditions", "drift", "inverse_dynamics"]
