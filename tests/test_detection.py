"Measures of detection against direct counting; the sharper score's parts do what they say"

import pytest
import torch
from hypothesis import given, settings, strategies as st

from test_composition import Weights, random_layer
from talking_heads.composition import *
from talking_heads.base.core import *
from talking_heads.weights.detection import *
from talking_heads.svd import *


@settings(max_examples=25, deadline=None)
@given(L=st.integers(2, 4), H=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_measures_equal_counting(L, H, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(L, H, L, H, generator=g)
    causal = [(Head(a, i), Head(b, j)) for a in range(L) for b in range(a + 1, L) for i in range(H) for j in range(H)]
    edges = [e for e in causal if torch.rand((), generator=g) < 0.3] or causal[:1]
    at = lambda e: float(x[e[0].layer, e[0].head, e[1].layer, e[1].head])
    order = sorted(causal, key=lambda e: -at(e))
    hits = [e in edges for e in order]
    ap = sum(sum(hits[: i + 1]) / (i + 1) for i, h in enumerate(hits) if h) / sum(hits)
    false = [e for e in causal if e not in edges]
    a, r = precision_and_roc(x, edges)
    assert float(a) == pytest.approx(ap)
    if false:
        assert float(r) == pytest.approx(sum(at(t) > at(f) for t in edges for f in false) / len(edges) / len(false))
    for row in edge_ranks(x, edges).itertuples():
        e = parse_head(row.src), parse_head(row.dst)
        rivals = [c for c in causal if c[1] == e[1] and at(c) > at(e)]
        assert row.raw == 1 + len(rivals) and row.filtered == 1 + len([c for c in rivals if c not in edges])


def test_drawing_a_reader_twice_counts_it_twice():
    x = torch.rand(3, 2, 3, 2, generator=torch.Generator().manual_seed(0))
    edges = [(Head(0, 0), Head(1, 1)), (Head(1, 0), Head(2, 0))]
    counts = torch.ones(1, 6)
    counts[0, 4] = 0
    dropped, _ = precision_and_roc(x, edges, counts=counts)
    y = x.clone()
    y[:, :, 2, 0] = -1  # this reader's pairs last, and its edge unlisted
    alone, _ = precision_and_roc(y, edges[:1])
    assert float(dropped) == pytest.approx(float(alone))


@settings(max_examples=40, deadline=None)
@given(L=st.integers(2, 4), H=st.integers(1, 3), seed=st.integers(0, 10**6), ties=st.booleans())
def test_resamples_equal_weighted_counting(L, H, seed, ties):
    "The plain slow sums over all pairs, each as often as its reader was drawn"
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(L, H, L, H, generator=g)
    if ties:
        x = (3 * x).round()
    causal = [(Head(a, i), Head(b, j)) for a in range(L) for i in range(H) for b in range(a + 1, L) for j in range(H)]
    edges = [e for e in causal if torch.rand((), generator=g) < 0.3] or causal[:1]
    counts = torch.randint(0, 4, (5, L * H), generator=g).float()
    ap, roc = precision_and_roc(x, edges, counts=counts)
    order = sorted(causal, key=lambda e: -float(x[e[0].layer, e[0].head, e[1].layer, e[1].head]))  # stable, as ties are
    for r, n in enumerate(counts.tolist()):
        w = [n[b.layer * H + b.head] for a, b in order]
        known = [e in edges for e in order]
        hits, others = sum(v for v, k in zip(w, known) if k), sum(v for v, k in zip(w, known) if not k)
        seen, found, area, before, precision = 0, 0, 0, 0, 0
        for v, k in zip(w, known):
            seen, found, before = seen + v, found + v * k, before + v * (not k)
            if k:
                area += v * (others - before)
                precision += v * found / max(seen, 1)
        assert float(ap[r]) == pytest.approx(precision / max(hits, 1))
        if others:
            assert float(roc[r]) == pytest.approx(area / max(hits, 1) / others)


def test_resamples_keep_the_share_of_known_readers():
    edges = [(Head(0, 0), Head(1, 1)), (Head(1, 0), Head(2, 0))]
    counts = resamples(3, 2, edges, n=50)
    assert (
        (counts[:, [3, 4]].sum(1) == 2).all() and (counts[:, [2, 5]].sum(1) == 2).all() and (counts[:, :2] == 0).all()
    )


def layers(seed=0, n=3):
    g = torch.Generator().manual_seed(seed)
    return Weights([random_layer(g, 4, 2, 40, 5) for _ in range(n)])


def test_shared_directions_are_the_planted_ones():
    W = layers()
    v = torch.nn.functional.normalize(torch.randn(40, generator=torch.Generator().manual_seed(1)), dim=0)
    for w in W.layers:
        for m in (w.W_Q, w.W_K, w.W_V):
            m += 40 * torch.einsum("d,hr->hdr", v, torch.randn(len(m), 5))
    P = shared_directions(reader_gram(W))
    assert float((P.T @ v).norm()) > 0.99
    c = compose(W, edit=without(P))["Q"]
    close = torch.testing.assert_close
    close(without(P)(torch.ones(1, 40, 2)).mT @ P, torch.zeros(1, 2, P.shape[1]), atol=1e-5, rtol=0)
    assert c.layers[2].max() <= 1


def test_far_side_is_a_metric_on_the_other_side():
    "M of a weighted reader has the norms of v W_QK F^(1/2)"
    W, far = layers(), None
    far = far_sides(W)
    w, v = W[2], torch.randn(40, generator=torch.Generator().manual_seed(2))
    for m, B in (("Q", w.W_Q[3] @ w.W_K[1].T), ("K", w.W_K[1] @ w.W_Q[3].T)):
        F = far(2, m)
        torch.testing.assert_close(
            (v @ reader_factors(w, m, far=F)[3]).square().sum(), v @ B @ F @ B.T @ v, rtol=1e-3, atol=1e-3
        )
    written = torch.cat([write_directions(W[l])[1] for l in (0, 1)])
    torch.testing.assert_close(
        far(2, "Q"), (F := torch.einsum("hcd,hce->de", written, written)) / F.trace() * 40, rtol=1e-3, atol=1e-4
    )
    assert torch.equal(far(0, "Q"), torch.eye(40)) and torch.allclose(far(2, "V"), torch.eye(40))


def test_sharpen_has_one_setting_for_all_modes_and_every_switch():
    W = layers(n=4)
    x = sharpen(W)
    assert set(x) == set("QKV") and all(y.shape == (4, 4, 4, 4) and y.isfinite().all() for y in x.values())
    for kw in (dict(shared=None), dict(far=False), dict(broad=False), dict(background=0), dict(shrink=None)):
        assert not torch.equal(sharpen(W, **kw)["Q"], x["Q"])
    plain = sharpen(W, shared=None, far=False, broad=False, background=0, shrink=None)["Q"]
    torch.testing.assert_close(plain, loudest(compose(W, "Q")))


@pytest.mark.slow
def test_board_on_gpt2(shared):
    "The sharpened score beats the measure TransformerLens ships and plain composition in Q, on precision and rank"
    w = attention_weights(str(shared / "gpt2-small-attention"), "folded", center_writing=True)
    edges, mine = known_edges["gpt2"]["Q"], sharpen(w)["Q"]
    ours, pk, cs = (measure(x, edges, n=0) for x in (mine, baseline(w, "Q", "pk"), compose(w, "Q").heads()))
    assert ours["ap"] > pk["ap"] > cs["ap"] and ours["filtered"] <= 4 < pk["filtered"]
