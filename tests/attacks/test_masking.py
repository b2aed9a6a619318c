"""Attacks that leave out of the objective what a defense held back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedleak.attacks import DLG, GS, IDLG, GaussNewton
from fedleak.attacks.optimisation import Search
from fedleak.gradients import UpdateMap, cosine_distance, masked, squared_distance
from fedleak.records import TrainingFacts

ONE = TrainingFacts(0.1, 1, 1, 1)


def without(observation, rate, seed=0):
    """The observation with a share of each layer's smallest entries held back."""
    held = {}
    for name, value in observation.update.items():
        limit = value.abs().flatten().kthvalue(max(1, round(rate * value.numel()))).values
        held[name] = torch.where(value.abs() <= limit, 0, value)
    return replace(observation, update=held)


@pytest.mark.parametrize("distance", [cosine_distance, squared_distance])
@pytest.mark.parametrize("batching", ["explicit", "vmap", "loop"])
@pytest.mark.parametrize("observations", [1, 2])
def test_a_masked_distance_is_that_of_the_entries_that_count(
    sigmoid_net, digits, batching, distance, observations
):
    inputs, labels = digits[0][:4, None].double(), digits[1][:4, None]
    model = sigmoid_net.double()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    mapping = UpdateMap(model, parameters, {}, ONE, batching=batching, chunk=3)
    generator = torch.Generator().manual_seed(1)
    count = 1 if observations == 1 else 4
    target, mask = {}, {}
    for name, parameter in parameters.items():
        shape = (count, *parameter.shape)
        target[name] = torch.randn(shape, generator=generator).double()
        if name != "3.bias" and name != "0.weight":
            mask[name] = torch.rand(shape, generator=generator) < 0.3
    target = {**target, **masked(target, mask)}
    search = Search(mapping, target, labels, inputs, observations, mask)
    values, slopes, _ = search.evaluate(inputs, labels, distance)
    for row in range(4):
        mine = {name: value[row if count == 4 else 0] for name, value in target.items()}
        counts = torch.cat([
            (mask[name][row if count == 4 else 0] if name in mask else torch.ones_like(aim).bool())
            .flatten() for name, aim in mine.items()
        ])  # fmt: skip
        variable = inputs[row].clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(model(variable), labels[row])
        update = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        ours = torch.cat([value.flatten() for value in update])[counts]
        theirs = torch.cat([value.flatten() for value in mine.values()])[counts]
        if distance is cosine_distance:
            expected = 1 - torch.nn.functional.cosine_similarity(ours, theirs, dim=0)
        else:
            expected = (ours - theirs).square().sum() / theirs.square().sum()
        (slope,) = torch.autograd.grad(expected, variable)
        torch.testing.assert_close(values[row], expected.detach())
        torch.testing.assert_close(slopes[row], slope)


@pytest.mark.parametrize(
    ("attack", "gain"),
    [
        (GS(restarts=2, iterations=200), 3),
        (IDLG(restarts=2, iterations=100), 10),
        (GaussNewton(iterations=15), 20),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_leaving_pruned_entries_out_undoes_pruning(
    attack, gain, sigmoid_net, observe, digits, psnr
):
    images, labels = digits
    pruned = without(observe(sigmoid_net, images[:1], labels[:1]), 0.8)
    adaptive = attack.model_copy(update={"mask_zeros": True})
    plain, masked_out = (
        psnr(each.reconstruct(pruned, 1).inputs, images[:1]).item() for each in (attack, adaptive)
    )
    assert masked_out > plain + gain


@pytest.mark.parametrize("local_steps", ["unroll", "one-gradient"])
def test_several_steps_with_weight_decay(sigmoid_net, observe, digits, local_steps):
    images, labels = digits
    facts = TrainingFacts(0.1, 2, 1, 2, weight_decay=0.01)
    pruned = without(observe(sigmoid_net, images[:2], labels[:2], facts), 0.5)
    attack = IDLG(restarts=1, iterations=3, local_steps=local_steps, mask_zeros=True)
    search = attack._prepare(pruned, 0)
    for name, value in pruned.update.items():
        assert (search.target[name][0][value == 0] == 0).all()
        assert torch.equal(search.counting(name)[0], value != 0)
    assert attack.reconstruct(pruned, 0).inputs.isfinite().all()


@pytest.mark.parametrize(
    "attack",
    [kind(restarts=2, iterations=5) for kind in (GS, IDLG, DLG, GaussNewton)],
    ids=lambda attack: attack.kind,
)
def test_clients_attacked_together_keep_their_own_masks(attack, sigmoid_net, observe, digits):
    images, labels = digits
    whole, other = (observe(sigmoid_net, images[i : i + 1], labels[i : i + 1]) for i in (0, 1))
    both = [whole, without(other, 0.6)]
    attack = attack.model_copy(update={"mask_zeros": True})
    (together,) = attack.reconstruct_each(both, [1, 2])
    for index, observation in enumerate(both):
        alone = attack.reconstruct(observation, 1 + index)
        torch.testing.assert_close(together[index].inputs, alone.inputs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", [GS, IDLG, DLG, GaussNewton])
def test_an_update_without_zeros_is_attacked_as_ever(kind, sigmoid_net, observe, digits):
    images, labels = digits
    observation = observe(sigmoid_net, images[:1], labels[:1])
    assert all((value != 0).all() for value in observation.update.values())
    plain, adaptive = (
        kind(restarts=2, iterations=5, mask_zeros=mask).reconstruct(observation, 3)
        for mask in (False, True)
    )
    assert torch.equal(plain.inputs, adaptive.inputs)
