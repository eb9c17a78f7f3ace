"""Every study of an evaluation, one file each; they are in the table (`STUDIES`) when this is imported."""

from worldline.evaluation import conditions
from worldline.evaluation.studies import audit, counterfactuals, drift, inverse_dynamics, regions, uncertainty

__all__ = ["audit", "conditions", "counterfactuals", "drift", "inverse_dynamics", "regions", "uncertainty"]
