"""The update map: what a client's local training makes of its samples, differentiably."""

from __future__ import annotations

from fedleak.gradients.curvature import Curvature, eigen_noise
from fedleak.gradients.derivatives import BatchedMap, Linearisation, Objective, Update
from fedleak.gradients.factored import cosine_distance, like, masked, squared_distance
from fedleak.gradients.local_training import batches, gradient_weight, mean_gradient
from fedleak.gradients.network import evaluation_copy
from fedleak.gradients.plan import Batching, Plan
from fedleak.gradients.representation import Representation, dense_layers
from fedleak.gradients.update_map import UpdateMap

__all__ = [
    "BatchedMap",
    "Batching",
    "Curvature",
    "Linearisation",
    "Objective",
    "Plan",
    "Representation",
    "Update",
    "UpdateMap",
    "batches",
    "cosine_distance",
    "dense_layers",
    "eigen_noise",
    "evaluation_copy",
    "gradient_weight",
    "like",
    "masked",
    "mean_gradient",
    "squared_distance",
]
