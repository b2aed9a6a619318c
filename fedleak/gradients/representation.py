"""What a dense layer is given: a function of the samples, its gradients, its part in the loss."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.gradients.batching import fitting
from fedleak.gradients.derivatives import Linearisation
from fedleak.gradients.network import evaluation_copy

_TOGETHER = 512
"""Samples that make a backward pass worth most of what it can be."""

_POWER_STEPS = 30
_GAIN = 1e-5
"""Relative growth of a norm below which a power iteration ends; it has then 1 % at most to
gain on the networks of the tests."""

_ROUNDINGS = 1000
"""Rounding errors, one upon the other, by which equal features may differ."""


class _Reached(Exception):
    """Ends a forward pass once a layer was given its input."""


class Representation:
    """The input of one dense layer, as a function ``r(x)`` of a network's samples.

    Shapes: ``n`` samples ``(n, *input)`` of ``L`` features ``(n, L)``. Each sample's
    features must depend on that sample alone (`dense_layers`).

    Attributes:
        layer: The layer's name.
    """

    def __init__(self, model: nn.Module, layer: str, train_mode: bool) -> None:
        """Look into a network.

        Args:
            model: Holds the weights, and is followed where these are changed in place; it is
                not changed itself.
            layer: Name of a dense layer that runs once and is given one vector a sample.
            train_mode: Whether the client trains in train mode.
        """
        followed: dict[int, Tensor] = {
            id(weight): nn.Parameter(weight.detach(), requires_grad=False)
            for weight in model.parameters()
        }
        followed |= {id(buffer): buffer for buffer in model.buffers()}
        self._network = evaluation_copy(model, train_mode, next(model.parameters()), followed)
        self.layer = layer
        self._layer = self._network.get_submodule(layer)
        self._seen: dict[torch.Size, tuple[Tensor, Tensor] | None] = {}

    def __call__(self, inputs: Tensor) -> Tensor:
        """The features; what follows the layer is not computed."""
        seen: list[Tensor] = []

        def stop(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            seen.append(arguments[0])
            raise _Reached

        with self._layer.register_forward_pre_hook(stop), contextlib.suppress(_Reached):
            self._network(inputs)
        return seen[0]

    def factors(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What the layer's weight gradient is made of.

        Args:
            inputs: ``(n, *input)``.
            labels: ``(n,)`` int64.

        Returns:
            Features ``r`` ``(n, L)`` and gradients ``d`` ``(n, K)`` of the batch's mean
            cross entropy at the layer's output. The weight's gradient is ``d.T @ r``.
        """
        seen: list[Tensor] = []

        def cut(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
            seen.extend((arguments[0].detach(), output.detach().requires_grad_()))
            return seen[1]

        with self._layer.register_forward_hook(cut):
            logits = self._network(inputs)
        (slopes,) = torch.autograd.grad(functional.cross_entropy(logits, labels), seen[1])
        return seen[0], slopes

    def gradient_norms(self, inputs: Tensor) -> Tensor:
        """Euclidean norms of the features' gradients in their samples, ``(n, L)``.

        ``L`` backward passes of a batch, as many features at a time as have room, in
        place of one for each feature and each sample: the arithmetic is the same, done
        together. Of it, what is known is left out: features that are an affine function of
        the sample have the same gradients everywhere, and those that see a part of the
        image (`_crops`) have none elsewhere.
        """
        if self._affine(inputs):
            return self._gradient_norms(inputs[:1]).expand(len(inputs), -1)
        crops = self._crops(inputs)
        if crops is None:
            return self._gradient_norms(inputs)
        parts, members = crops
        norms = self._gradient_norms(parts).reshape(len(members), len(inputs), -1)
        return norms.transpose(0, 1).flatten(1)[:, members.flatten().argsort()]

    def spectral_norms(self, inputs: Tensor) -> Tensor:
        """Spectral norms of the samples' Jacobians ``dr/dx``, ``(n,)``.

        By power iteration, which comes from below: what it gives may be a little too small.
        """
        if self._affine(inputs):
            return self._spectral_norms(inputs[:1]).expand(len(inputs))
        return self._spectral_norms(inputs)

    def _crops(self, inputs: Tensor) -> tuple[Tensor, Tensor] | None:
        """Parts of the images that the network makes the same features of as of the whole.

        Convolutions and pooling without padding slide over the image: of what a feature
        sees, cut out, they make that feature and the others that see the same. That the
        parts have the features of the whole is checked on the samples at hand, where a
        network that does something else does not pass.

        Returns:
            Parts ``(G * n, C, h, w)``, those of the first window first, and the features of
            each window ``(G, L / G)`` int64; None where this would not save work.
        """
        if inputs.dim() != 4:
            return None
        with torch.no_grad():
            shape = inputs.shape[1:]
            if shape not in self._seen:
                self._seen[shape] = self._windows(inputs)
            if (found := self._seen[shape]) is None:
                return None
            windows, members = found
            parts = torch.cat([inputs[..., t:b, x:y] for t, b, x, y in windows.T.tolist()])
            try:
                again = self(parts)
            except (RuntimeError, ValueError, IndexError, TypeError):
                return None
            whole = self(inputs)[:, members].transpose(0, 1).flatten(0, 1)
            same = again.shape == whole.shape and torch.allclose(again, whole, rtol=1e-4)
        return (parts, members) if same else None

    def _windows(self, inputs: Tensor) -> tuple[Tensor, Tensor] | None:
        """What the features see of an image, found by rows and columns of NaN.

        Returns:
            First and last row, first and last column of each window ``(4, G)``, the last
            ones excluded, and the features that see it ``(G, L / G)``; None where they do
            not fall into several windows of one size.
        """
        seen = [self._reach(inputs, dim) for dim in (2, 3)]
        if not all(reach.any(0).all() for reach in seen):
            return None
        edges = [
            edge
            for reach in seen
            for edge in (reach.int().argmax(0), len(reach) - reach.flip(0).int().argmax(0))
        ]
        windows, window = torch.unique(torch.stack(edges), dim=1, return_inverse=True)
        counts = window.bincount()
        sizes = windows[1::2] - windows[::2]
        if len(counts) == 1 or (counts != counts[0]).any() or (sizes != sizes[:, :1]).any():
            return None
        return windows, window.argsort(stable=True).reshape(len(counts), -1)

    def _reach(self, inputs: Tensor, dim: int) -> Tensor:
        """Which features see each row (dim 2) or column (3) of an image, ``(size, L)`` bool."""
        size = inputs.shape[dim]
        blind = inputs[:1].repeat(size, 1, 1, 1)
        blind.diagonal(dim1=0, dim2=dim).fill_(torch.nan)
        return self(blind).isnan()

    def _gradient_norms(self, inputs: Tensor) -> Tensor:
        count = len(inputs)

        def prepared(copies: int = 1) -> tuple[Tensor, Tensor]:
            variables = inputs.detach().repeat(copies, *[1] * (inputs.dim() - 1)).requires_grad_()
            return variables, self(variables)

        def once() -> None:
            variables, features = prepared()
            torch.autograd.grad(features.sum(), variables)

        room = fitting(once, inputs.device)
        copies = max(1, min(_TOGETHER // count, room))
        variables, features = prepared(copies)
        norms = []
        for chosen in torch.split(torch.arange(features.shape[1]), copies):
            one_hot = torch.zeros_like(features).reshape(copies, count, -1)
            one_hot[torch.arange(len(chosen)), :, chosen] = 1
            (slopes,) = torch.autograd.grad(
                features, variables, one_hot.flatten(0, 1), retain_graph=True
            )
            lengths = slopes.flatten(1).norm(dim=1).reshape(copies, count)
            norms.append(lengths[: len(chosen)])
        return torch.cat(norms).T

    def _spectral_norms(self, inputs: Tensor) -> Tensor:
        line = Linearisation(lambda x: {"features": self(x)}, inputs)
        direction = _noise(line.update["features"])
        lengths = direction.new_zeros(len(inputs))
        for _ in range(_POWER_STEPS):
            pulled = line.vjp({"features": functional.normalize(direction)})
            before, lengths = lengths, pulled.flatten(1).norm(dim=1)
            if (lengths <= (1 + _GAIN) * before).all():
                break
            direction = line.jvp(pulled)["features"]
        return lengths

    def _affine(self, inputs: Tensor) -> bool:
        """Whether features change in proportion on the way from far away to each sample."""
        far = 3 * _noise(inputs)
        with torch.no_grad():
            here, there, between = (self(x) for x in (inputs, far, 0.3 * inputs + 0.7 * far))
        bent = (0.3 * here + 0.7 * there - between).abs().amax(0)
        rounding = _ROUNDINGS * torch.finfo(here.dtype).eps
        return bool((bent <= rounding * (here - there).abs().amax(0)).all())


def dense_layers(model: nn.Module, train_mode: bool, input_shape: tuple[int, ...]) -> list[str]:
    """Dense layers with a `Representation`, in the order in which they run.

    Each runs once in a pass, is given one vector a sample, and what it is given depends on
    that sample alone: not so behind a batch norm that normalises by the batch.

    Args:
        model: The network.
        train_mode: Whether the client trains in train mode.
        input_shape: ``*input`` of one sample, of numbers.
    """
    network = evaluation_copy(model, train_mode, next(model.parameters()))
    seen: dict[str, list[Tensor]] = {}
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear):

            def watch(_: nn.Module, arguments: tuple[Tensor, ...], name: str = name) -> None:
                seen.setdefault(name, []).append(arguments[0].clone())

            layer.register_forward_pre_hook(watch)
    samples = _noise(next(network.parameters()).new_empty(3, *input_shape)).sigmoid()
    with torch.no_grad():
        network(samples)
        network(samples[:2])
    return [
        name
        for name, given in seen.items()
        if len(given) == 2
        and given[0].dim() == 2
        and len(given[0]) == 3
        and torch.allclose(given[0][:2], given[1], rtol=1e-4, atol=1e-6)
    ]


def _noise(like: Tensor) -> Tensor:
    """Normal noise, the same for the same shape."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(like.shape, generator=generator).to(like)
