"""What is computed on a GPU against float64 on the CPU, whatever precision the user has set for products."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from scipy.cluster.hierarchy import linkage
from torch import nn

from lightning_topo.geometry import (
    BoundTable,
    block_distortions,
    displacement_lengths,
    distortions,
    snapshot,
    step_bound,
    step_distortion,
)
from lightning_topo.geometry._fate import neuron_fate
from lightning_topo.geometry._landmarks import farthest_point_landmarks
from lightning_topo.homology._h0 import h0_deaths
from lightning_topo.stability import sharpness

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def cloud(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def true_ratio(before, after):
    x, y = before.double(), after.double()
    far, moved = (
        torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist"),
        torch.cdist(y - x, y - x, compute_mode="donot_use_mm_for_euclid_dist"),
    )
    return float((moved / far).nan_to_num(0.0).max())


@pytest.fixture(params=["highest", "medium"])
def precision(request):
    """TF32 or bfloat16 inside products, as people set it: our results must not notice."""
    kept = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield
    assert torch.get_float32_matmul_precision() == request.param
    torch.set_float32_matmul_precision(kept)


@pytest.mark.parametrize(("n", "d"), [(16, 8), (200, 64), (700, 300), (1500, 40)])
@pytest.mark.parametrize("far", [0.0, 1000.0])
def test_step_distortion_is_that_of_float64(precision, n, d, far):
    before = cloud(n, d) + far
    after = before + 0.02 * cloud(n, d, seed=1)
    found = step_distortion(before.cuda(), after.cuda())
    assert found.critical_ratio == pytest.approx(true_ratio(before, after), rel=1e-6)
    apart = torch.cdist(after.double(), after.double()) / torch.cdist(before.double(), before.double())
    apart.fill_diagonal_(1.0)
    assert found.expansion == pytest.approx(float(apart.max()), rel=1e-6)
    assert found.contraction == pytest.approx(float(apart.min()), rel=1e-6)


def test_equal_neurons_stay_equal_and_their_parting_is_seen(precision):
    before = cloud(300, 20)[torch.arange(600) // 2]
    after = before * 1.01
    assert step_distortion(before.cuda(), after.cuda()).n_coincident == 300
    after[7] += 1e-6
    found = step_distortion(before.cuda(), after.cuda())
    assert found.critical_ratio == math.inf
    assert found.n_split == 1
    assert found.critical_pair == (6, 7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1e-4, 1e-2, 0.3])
def test_bounds_are_never_below_the_ratio(precision, dtype, size):
    for seed in range(20):
        start = cloud(64, 48, seed=seed).to(dtype)
        before = (start.float() + size * cloud(64, 48, seed=seed + 100)).to(dtype)
        after = (before.float() + size * cloud(64, 48, seed=seed + 200)).to(dtype)
        bound = step_bound(snapshot(start.cuda()), before.cuda(), after.cuda())
        assert bound.step.is_cuda
        assert not float(bound.step) < true_ratio(before, after)
        assert not float(bound.span) < true_ratio(start, after)


def test_a_table_on_the_device_waits_for_nothing():
    start = cloud(256, 32).cuda()
    table = BoundTable.of([snapshot(start)])
    after = start + 0.001
    torch.cuda.synchronize()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        bound = table.bounds(displacement_lengths(start, after))
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    assert float(bound) < 1


def test_blocks_and_totals(precision):
    before, reference = cloud(3, 50, 20).cuda(), cloud(3, 50, 20, seed=4).cuda()
    after = before + 0.05 * cloud(3, 50, 20, seed=1).cuda()
    together, alone = distortions(before, after, reference), block_distortions(before, after)
    for k in range(3):
        truth = true_ratio(before[k].cpu(), after[k].cpu())
        assert together.step[k].critical_ratio == pytest.approx(truth, rel=1e-6)
        assert alone[k].critical_ratio == pytest.approx(truth, rel=1e-6)


@pytest.mark.parametrize(("n", "d"), [(100, 5), (900, 64)])
def test_h0_is_single_linkage(precision, n, d):
    points = cloud(n, d)
    deaths = h0_deaths(points.cuda())
    assert deaths.is_cuda
    truth = torch.from_numpy(linkage(points.double().numpy(), "single")[:, 2].copy()).sort().values
    torch.testing.assert_close(deaths.cpu().double().sort().values, truth, rtol=1e-5, atol=0)


def test_landmarks_and_fate_are_those_of_the_cpu(precision):
    points = torch.cat([cloud(100, 16), cloud(40, 16)[:1] + 1e-4 * cloud(40, 16, seed=3)])
    here, there = (farthest_point_landmarks(where, 20) for where in (points, points.cuda()))
    assert torch.equal(here.indices, there.indices.cpu())
    here, there = neuron_fate(points), neuron_fate(points.cuda())
    assert there.effective_neurons == pytest.approx(here.effective_neurons, rel=1e-4)
    assert replace(there, effective_neurons=here.effective_neurons) == here


def test_sharpness_is_the_largest_eigenvalue_of_the_dense_hessian(precision):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = torch.randn(32, 6).double(), torch.randint(0, 3, (32,))
    grads = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()), create_graph=True)
    rows = [
        torch.cat([row.flatten() for row in torch.autograd.grad(entry, list(model.parameters()), retain_graph=True)])
        for entry in torch.cat([grad.flatten() for grad in grads])
    ]
    truth = float(torch.linalg.eigvalsh(torch.stack(rows))[-1])
    model, x, y = model.float().cuda(), x.float().cuda(), y.cuda()
    estimate = sharpness(lambda: F.cross_entropy(model(x), y), model.parameters(), tolerance=1e-3)
    assert estimate.value == pytest.approx(truth, rel=1e-2)
