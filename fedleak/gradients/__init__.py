"""The update map: what a client's local training makes of its samples, differentiably."""

from __future__ import annotations

from fedleak.gradients.factored import cosine_distance, squared_distance
from fedleak.gradients.local_training import batches, gradient_weight, mean_gradient
from fedleak.gradients.network import evaluation_copy
from fedleak.gradients.update_map import UpdateMap

__all__ = [
    "UpdateMap",
    "batches",
    "cosine_distance",
    "evaluation_copy",
    "gradient_weight",
    "mean_gradient",
    "squared_distance",
]
