"""Noise along one eigenvector of the update map's curvature (Zhang et al., NeurIPS 2023)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from clients.defenses.defense import Defense, Metrics, Turn
from fedleak.gradients import Curvature, UpdateMap, eigen_noise
from fedleak.records import Setting

_MOST = 4096
"""Values of a batch up to which ``JJ'``, one row for each, is factorised."""


class EigenNoise(Defense):
    """Adds noise in one direction, chosen by how much it hides.

    With ``J`` the derivative of the gradient in the batch's values, noise of a given size
    moves what a perfect attacker reconstructs by ``scale / sqrt(lambda)``, where ``lambda`` is
    the eigenvalue of ``JJ'`` whose direction the noise has (Zhang et al., "Comparing
    eigenvectors"). The same size hides little along the first eigenvector and most along
    the last. This is an instrument to study that, and no protection to rely on: the noise
    follows from the data.

    It reports ``eigenvalue``, lambda, and ``error``, ``scale / sqrt(lambda)``.
    """

    kind: Literal["eigen-noise"] = "eigen-noise"
    makes_gradients: ClassVar[bool] = True
    place: float = Field(
        0.0,
        ge=0,
        le=1,
        description="which eigenvector: 0 that of the largest eigenvalue, 1 of the smallest that "
        "is not zero, between them the one before which this share of all lies",
    )
    scale: float = Field(1e-3, gt=0, le=1e9, description="Euclidean norm of the noise")

    def unsupported(self, setting: Setting) -> str | None:
        shape, facts = setting.input_shape, setting.facts
        if len(shape) != 3:
            return f"differentiates in pixels, and samples of shape {shape} are no images"
        if facts.steps > 1:
            return f"is defined for the gradient of one local step, not for {facts.steps}"
        size = facts.batch_size * torch.Size(shape).numel()
        if size > _MOST:
            return f"a batch has {size} values, more than the {_MOST} that it can take apart"
        return None

    def step(self, model: nn.Module, inputs: Tensor, labels: Tensor, turn: Turn) -> Metrics:
        parameters = {name: value.detach().double() for name, value in model.named_parameters()}
        buffers = {name: value.detach() for name, value in model.named_buffers()}
        curvature = Curvature(
            UpdateMap(model, parameters, buffers, turn.facts), inputs.double(), labels
        )
        eigenvalues, noise = eigen_noise(curvature)
        index = round(self.place * (len(eigenvalues) - 1))
        chosen = noise(index)
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                parameter.grad = parameter.grad + self.scale * chosen[name].to(parameter.grad)
        eigenvalue = float(eigenvalues[index])
        return {"eigenvalue": eigenvalue, "error": self.scale / eigenvalue**0.5}
