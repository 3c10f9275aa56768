"Nulls: calibrated tails, q, z, rotations"

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from talking_heads.base.core import TaskError
from talking_heads.weights.nulls import *
from talking_heads.composition import *


def draws(lam, n, d, g):
    "Squared scores of isotropic directions, from all d coordinates"
    x = torch.randn(n, d, generator=g).square()
    return (x[:, : len(lam)] * lam).sum(-1) / x.sum(-1)


@pytest.mark.parametrize("spectrum", ["flat", "power", "rank one", "two"])
@pytest.mark.parametrize("d", [64, 256])
def test_false_positives_are_nominal(spectrum, d):
    j, g = torch.arange(1, 17.0), torch.Generator().manual_seed(0)
    lam = dict(flat=torch.ones(16), power=1 / j, two=torch.where(j <= 2, 1.0, 1e-4))
    lam["rank one"] = torch.where(j == 1, 100.0, 1.0)
    lam = lam[spectrum] / lam[spectrum].sum()
    x = draws(lam, 400_000, d, g)
    p = isotropic_p(x.sqrt()[:, None], lam[None], d)[:, 0]
    for level, tolerance in ((0.01, 0.1), (0.001, 0.25)):
        assert abs(float((p < level).double().mean()) / level - 1) < tolerance
    assert abs(float(p.mean()) - 0.5) < 0.02


@settings(max_examples=30, deadline=None)
@given(r=st.integers(1, 12), d=st.integers(20, 200), seed=st.integers(0, 10**6))
def test_tail_falls_from_one_to_zero(r, d, seed):
    lam = torch.rand(r, generator=torch.Generator().manual_seed(seed)) + 0.01
    lam = (lam / lam.sum()).sort(descending=True).values
    x = torch.linspace(0, float(lam[0]) * 1.05, 300).double()
    p = isotropic_tail(lam.expand(300, r), x, d)
    assert p[0] == 1 and p[-1] == 0 and (p.diff() <= 1e-6).all() and p.isfinite().all()


def test_one_heard_direction_is_a_beta():
    """With one singular value the squared score is Beta(1/2, (d-1)/2);
    for d = 3 it is a squared cosine, even on [0,1] in the cosine"""
    lam = torch.tensor([1.0])
    cosine = torch.tensor([0.2, 0.5, 0.8, 0.95])
    p = isotropic_tail(lam.expand(4, 1), cosine.square().double(), 3)
    torch.testing.assert_close(p, 1 - cosine.double(), atol=0.02, rtol=0.1)


def test_the_far_tail_is_exact_where_it_can_be_written_down():
    """With two equal heard directions s^2 has the tail (1-2s^2)^((d-2)/2);
    it does not vanish where float64's normal tail would"""
    y, d = torch.linspace(0.02, 0.8, 30).double(), 768
    p, want = isotropic_tail(torch.full((30, 2), 0.5), y / 2, d), (1 - y).log() * (d - 2) / 2
    assert want.min() < -600 and (p > 0).all() and (p.log() / want - 1).abs().max() < 0.01
    table = isotropic_p((y / 2).sqrt()[:, None], torch.full((1, 2), 0.5), d)[:, 0]
    assert (table.log() / want - 1).abs()[want > -500].max() < 0.02


def test_q_by_hand_and_by_histogram():
    from talking_heads.weights.scan import _bin, _bins, q_of

    p = torch.rand(5000, generator=torch.Generator().manual_seed(1)).double() ** 4
    q = benjamini_hochberg(p)
    n, s = len(p), p.sort().values
    for i in (0, 10, 400, 4999):
        assert float(q[(p == s[i]).nonzero()[0, 0]]) == pytest.approx(
            min(1.0, min(float(s[k]) * n / (k + 1) for k in range(i, n)))
        )
    rough = q_of(p, torch.bincount(_bin(p), minlength=_bins))
    assert (rough >= q * 0.9999).all() and (rough <= q * 1.013).all()


def test_robust_z_of_a_normal_is_standard():
    z = robust_z(3 + 2 * torch.randn(200_000, generator=torch.Generator().manual_seed(0)))
    assert abs(float(z.median())) < 0.01 and abs(float(z.std()) - 1) < 0.02
    assert robust_z(torch.ones(5)).isnan().all() and robust_z(torch.tensor([1.0, 1.0, 1.0, 9.0])).isnan().all()


def test_a_reader_without_weights_gives_p_one():
    p = isotropic_p(torch.zeros(7, 2), torch.tensor([[0.0, 0.0], [0.7, 0.3]]), 30)
    assert (p[:, 0] == 1).all() and (p[:, 1] == 1).all()


def test_rotations_leave_spectrum_and_writers_alone():
    "For orthonormal writers that span everything the mean square over writers cannot change"
    g = torch.Generator().manual_seed(0)
    V, lam = torch.linalg.qr(torch.randn(24, 24, generator=g))[0], torch.tensor([0.6, 0.3, 0.1])
    top = rotation_null(V, lam, n=20, seed=3)
    assert (
        torch.equal(top, rotation_null(V, lam, n=20, seed=3))
        and (top.square() >= 1 / 24).all()
        and (top.square() <= 0.6 + 1e-6).all()
    )


def test_false_discovery_rates_leave_p_alone():
    "Doubles are not written over, and what is no probability is refused"
    p = torch.tensor([[0.01, float("nan")], [0.04, 0.03]]).double()
    kept = p.clone()
    q = benjamini_hochberg(p)
    assert torch.equal(p[~p.isnan()], kept[~kept.isnan()]) and q.isnan().tolist() == p.isnan().tolist()
    for bad in (-0.1, 1.5):
        with pytest.raises(TaskError, match="between 0 and 1"):
            benjamini_hochberg(torch.tensor([0.5, bad]))
