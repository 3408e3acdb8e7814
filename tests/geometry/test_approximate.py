"""The stated errors of the sampled and the projected mode, over many draws."""

import pytest
import torch

from lightning_topo.geometry import projected_step_distortion, sampled_step_distortion, step_distortion


def step_of(n: int, d: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    before = torch.randn(n, d, generator=generator)
    return before, before + 0.1 * torch.randn(n, d, generator=generator) * torch.rand(
        n, 1, generator=generator
    )


def all_pairs(before: torch.Tensor, after: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    i, j = torch.triu_indices(len(before), len(before), 1)
    d = (before[i] - before[j]).norm(dim=1)
    delta = after - before
    return (delta[i] - delta[j]).norm(dim=1) / d, (after[i] - after[j]).norm(dim=1) / d


def test_sampled_coverage_holds_as_often_as_stated():
    before, after = step_of(150, 4)
    q, ratio = all_pairs(before, after)
    generator = torch.Generator().manual_seed(0)
    failures = 0
    for _ in range(200):
        step = sampled_step_distortion(before, after, 24, generator, failure_probability=0.2)
        unseen = max(
            float((q > step.critical_ratio * (1 + 1e-5)).float().mean()),
            float((ratio > step.expansion * (1 + 1e-5)).float().mean()),
            float((ratio < step.contraction * (1 - 1e-5)).float().mean()),
        )
        failures += unseen > step.unseen_pairs
    assert failures <= 0.2 * 200


def test_sampled_values_are_those_of_real_pairs():
    before, after = step_of(300, 5)
    exact = step_distortion(before, after)
    step = sampled_step_distortion(before, after, 32, torch.Generator().manual_seed(1))
    assert not step.exact
    assert not step.certified
    assert step.critical_ratio <= exact.critical_ratio
    assert exact.contraction <= step.contraction <= step.expansion <= exact.expansion
    assert step.critical_pair is not None
    pair = list(step.critical_pair)
    assert step_distortion(before[pair], after[pair]).critical_ratio == pytest.approx(step.critical_ratio)


@pytest.mark.parametrize("size", [1e-4, 1.0])
def test_projected_factor_holds(size):
    before, after = step_of(60, 3000)
    after = before + size * (after - before)
    exact = step_distortion(before, after)
    for seed in range(10):
        step = projected_step_distortion(before, after, 128, torch.Generator().manual_seed(seed))
        factor = step.error_factor
        assert exact.critical_ratio / factor <= step.critical_ratio <= exact.critical_ratio * (1 + 1e-9)
        assert exact.expansion / factor <= step.expansion <= exact.expansion * (1 + 1e-9)
        assert exact.contraction * (1 - 1e-9) <= step.contraction <= exact.contraction * factor


def test_projected_twins_splits_and_merges():
    before, after = step_of(40, 600)
    before[1], after[1] = before[0], after[0]
    before[3] = before[2]
    after[5] = after[4]
    step = projected_step_distortion(before, after, 64, torch.Generator().manual_seed(0))
    assert (step.n_coincident, step.n_split, step.n_merged) == (2, 1, 1)
    assert step.critical_ratio == step.expansion == torch.inf
    assert (step.critical_pair, step.contraction, step.contraction_pair) == ((2, 3), 0.0, (4, 5))
    still = projected_step_distortion(before, before.clone(), 64, torch.Generator().manual_seed(0))
    assert (still.critical_ratio, still.contraction, still.expansion) == (0, 1, 1)


def test_small_clouds_are_measured_exactly():
    before, after = step_of(20, 10)
    exact = step_distortion(before, after)
    assert sampled_step_distortion(before, after, 20) == exact
    assert projected_step_distortion(before, after, 10) == exact


def test_draws_leave_the_global_generator_alone():
    before, after = step_of(50, 20)
    state = torch.random.get_rng_state()
    for measure in (sampled_step_distortion, projected_step_distortion):
        assert measure(before, after, 8) == measure(before, after, 8)
        first = measure(before, after, 8, torch.Generator().manual_seed(3))
        assert first == measure(before, after, 8, torch.Generator().manual_seed(3))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("measure", [sampled_step_distortion, projected_step_distortion])
def test_bad_arguments(measure):
    before, after = step_of(5, 5)
    with pytest.raises(ValueError, match="expected n_"):
        measure(before, after, 0)
    with pytest.raises(ValueError, match="failure_probability"):
        measure(before, after, failure_probability=1.0)
