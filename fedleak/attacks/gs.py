"""Inverting Gradients (Geiping, Bauermeister, Dröge, Moeller: NeurIPS 2020)."""

from __future__ import annotations

from typing import Literal

from fedleak.attacks.first_order import FirstOrderAttack, RelativeWeight


class GS(FirstOrderAttack):
    """Cosine distance plus total variation, by signed Adam within the box [0, 1].

    Geiping et al., Eq. 4. Adam is given the sign of the gradient; its step is divided
    by ten after 3/8, 5/8 and 7/8 of the iterations; after each, pixels are clamped to
    [0, 1].

    The paper's weight of the total variation, ``tv``, has to suit the scale of the
    distance, which is 1e-6 for an untrained network with small weights and 0.1 for
    others, and blurs what the distance alone would find exactly. By default the weight
    is relative to the distance at hand instead: the objective is the distance times
    ``1 + relative_tv * TV``. For the paper's own objective set ``relative_tv`` to 0.
    """

    kind: Literal["gs"] = "gs"
    relative_tv: RelativeWeight = 30.0
