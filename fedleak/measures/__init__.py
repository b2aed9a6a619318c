"""Scores (how close a reconstruction comes to the truth) and measures (how much a model, a
capture or an update gives away), each in its own file."""

from __future__ import annotations

from fedleak.measures.empirical_epsilon import EmpiricalEpsilon
from fedleak.measures.extraction import EXTRACTION_SCORES, ExtractionScore, extraction
from fedleak.measures.inversion_influence import InversionInfluence
from fedleak.measures.jacobian_sensitivity import JacobianSensitivity
from fedleak.measures.label_accuracy import LabelAccuracy
from fedleak.measures.leakage_budget import BUDGET_METRICS, leakage_budget
from fedleak.measures.matching import match
from fedleak.measures.measure import Evidence, Measure, Release, Value
from fedleak.measures.mse import MSE
from fedleak.measures.psnr import PSNR
from fedleak.measures.representation import RepresentationLeakage
from fedleak.measures.score import InputScore, SampleScore, Score
from fedleak.measures.ssim import SSIM
from fedleak.measures.subspace_distance import SubspaceDistance
from fedleak.measures.token_accuracy import TokenAccuracy
from fedleak.measures.usable_latent import UsableLatent
from fedleak.measures.usable_original import UsableOriginal

SAMPLE_SCORES: tuple[type[SampleScore], ...] = (MSE, PSNR, SSIM, TokenAccuracy, LabelAccuracy)
SCORES: tuple[type[Score], ...] = (*SAMPLE_SCORES, *EXTRACTION_SCORES)
MEASURES: tuple[type[Measure], ...] = (
    JacobianSensitivity,
    InversionInfluence,
    SubspaceDistance,
    RepresentationLeakage,
    UsableLatent,
    UsableOriginal,
    EmpiricalEpsilon,
)

__all__ = [
    "BUDGET_METRICS",
    "EXTRACTION_SCORES",
    "MEASURES",
    "MSE",
    "PSNR",
    "SAMPLE_SCORES",
    "SCORES",
    "SSIM",
    "EmpiricalEpsilon",
    "Evidence",
    "ExtractionScore",
    "InputScore",
    "InversionInfluence",
    "JacobianSensitivity",
    "LabelAccuracy",
    "Measure",
    "Release",
    "RepresentationLeakage",
    "SampleScore",
    "Score",
    "SubspaceDistance",
    "TokenAccuracy",
    "UsableLatent",
    "UsableOriginal",
    "Value",
    "extraction",
    "leakage_budget",
    "match",
]
