import copy

import pytest
import torch
from torch import nn

from sdcli.training.optimizers import AveragedWeights, MatrixOptimizer, learning_rate, orthogonalize


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(12, 16, 3), nn.GroupNorm(4, 16), nn.Flatten(), nn.Linear(16, 9))


def gradients(module, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_all_parameters_are_updated_and_gradients_are_cleared():
    module = network()
    before = [p.detach().clone() for p in module.parameters()]
    optimizer = MatrixOptimizer([module], 0.1, weight_decay=0.0)
    gradients(module, 1)
    optimizer.step(0.1)
    assert all(not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    assert all(p.grad is None for p in module.parameters())


def test_a_convolution_is_updated_as_a_matrix():
    module = network()
    matrix = nn.Parameter(module[0].weight.detach().flatten(1).clone())
    reference = torch.optim.Muon([matrix], lr=0.02, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    optimizer = MatrixOptimizer([module], 0.5, weight_decay=0.0)
    for seed in range(3):
        gradients(module, seed)
        matrix.grad = module[0].weight.grad.flatten(1).clone()
        reference.step()
        optimizer.step(0.02)
    torch.testing.assert_close(module[0].weight.flatten(1), matrix, rtol=0, atol=0)


def test_grouped_matrices_are_updated_like_single_ones():
    """Wide, tall and square ones, with weight decay; one has no gradient in the second step, which counts as zeros."""
    torch.manual_seed(0)
    shapes = [(24, 16), (16, 24), (24, 16), (16, 16), (24, 16)]
    module = nn.ModuleList([nn.Linear(inputs, outputs, bias=False) for outputs, inputs in shapes])
    twins = [nn.Parameter(layer.weight.detach().clone()) for layer in module]
    optimizer = MatrixOptimizer([module, nn.LayerNorm(9)], 0.5, weight_decay=0.1)
    assert [len(group) for group in optimizer.groups] == [3, 1, 1]
    reference = torch.optim.Muon(twins, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        gradients(module, step)
        for layer, twin in zip(module, twins, strict=True):
            twin.grad = layer.weight.grad.clone()
        if step == 1:
            module[2].weight.grad = None
            twins[2].grad.zero_()
        reference.step()
        optimizer.step(0.02)
    for layer, twin in zip(module, twins, strict=True):
        torch.testing.assert_close(layer.weight, twin, rtol=0, atol=0)


def test_orthogonalized_matrices_have_singular_values_near_one():
    matrices = torch.randn(3, 20, 32, generator=torch.Generator().manual_seed(0))
    for given in (matrices, matrices.mT):
        left, _, right = torch.linalg.svd(given, full_matrices=False)
        found = orthogonalize(given)
        assert (found.shape, found.dtype) == (given.shape, torch.bfloat16)
        values = torch.linalg.svdvals(found.float())
        assert values.min() > 0.6
        assert values.max() < 1.3
        nearest = left @ right
        cosine = (found.float() * nearest).sum((1, 2)) / found.float().norm(dim=(1, 2)) / nearest.norm(dim=(1, 2))
        assert cosine.min() > 0.95


def test_vectors_and_embeddings_are_updated_by_adamw():
    module = nn.ModuleList([nn.Embedding(20, 16), nn.LayerNorm(16)])
    twin = copy.deepcopy(module)
    optimizer = MatrixOptimizer([module, nn.Linear(16, 16)], 0.01, weight_decay=0.0)
    reference = torch.optim.AdamW(twin.parameters(), lr=0.01, weight_decay=0.0, betas=(0.9, 0.99))
    for seed in range(3):
        gradients(module, seed)
        gradients(twin, seed)
        optimizer.step(0.01)
        reference.step()
    for parameter, expected in zip(module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=0, atol=0)


def test_a_restored_optimizer_continues_exactly():
    module = network()
    optimizer = MatrixOptimizer([module], 0.1, weight_decay=0.01)
    gradients(module, 1)
    optimizer.step(0.1)
    other = copy.deepcopy(module)
    resumed = MatrixOptimizer([other], 0.3, weight_decay=0.01)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, by in ((module, optimizer), (other, resumed)):
        gradients(each, 2)
        by.step(0.05)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.1), (4, 0.5), (9, 1.0), (50, 1.0), (80, 1.0), (90, 0.5), (98, 0.1), (100, 0.0)]
)
def test_the_learning_rate_rises_stays_and_falls(step, expected):
    assert learning_rate(step, 1.0, steps=100, warmup=10, cooldown=20) == pytest.approx(expected)


def test_the_average_follows_its_formula():
    parameter = nn.Linear(1, 1, bias=False)
    average = AveragedWeights([parameter], decay=0.5)
    expected = parameter.weight.item()
    for update, value in enumerate((1.0, -2.0, 5.0, 3.0, 4.0, 0.5, 2.0, 9.0, 1.5, 7.0, 3.5, 2.5)):
        nn.init.constant_(parameter.weight, value)
        average.update()
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * value
    assert average.averages[0].item() == pytest.approx(expected)


def test_swapping_twice_changes_nothing():
    module = network()
    average = AveragedWeights([module], decay=0.9)
    nn.init.ones_(module[3].weight)
    weights = [p.detach().clone() for p in module.parameters()]
    averages = [a.clone() for a in average.averages]
    average.swap()
    assert all(torch.equal(a, p) for a, p in zip(averages, module.parameters(), strict=True))
    average.swap()
    assert all(torch.equal(w, p) for w, p in zip(weights, module.parameters(), strict=True))
