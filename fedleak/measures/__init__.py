"""Scores: how close a reconstruction comes to the truth, each in its own file."""

from __future__ import annotations

from fedleak.measures.label_accuracy import LabelAccuracy
from fedleak.measures.matching import match
from fedleak.measures.mse import MSE
from fedleak.measures.psnr import PSNR
from fedleak.measures.score import InputScore, Score
from fedleak.measures.ssim import SSIM

SCORES: tuple[type[Score], ...] = (MSE, PSNR, SSIM, LabelAccuracy)

__all__ = ["MSE", "PSNR", "SCORES", "SSIM", "InputScore", "LabelAccuracy", "Score", "match"]
