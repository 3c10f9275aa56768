"Planted weights: exact spectra, exact strengths in every mode, the truth returned"

import pytest
import torch
from hypothesis import given, settings, strategies as st

from talking_heads.composition import *
from talking_heads.base.core import *
from talking_heads.weights.detection import *
from talking_heads.weights.planted import *
from talking_heads.svd import *


def measured(weights, truth):
    c = compose(weights, truth["mode"][0])
    out = []
    for t in truth.itertuples():
        l, h, i = map(int, t.src.split("."))
        b = parse_head(t.dst)
        out.append(float(c.layers[b.layer][l, h, i, b.head]))
    return torch.tensor(out)


@settings(max_examples=30, deadline=None)
@given(
    mode=st.sampled_from("QKV"),
    kv=st.sampled_from([1, 2, 4]),
    spectrum=st.sampled_from(["flat", "power"]),
    s=st.floats(0.2, 0.5),
    seed=st.integers(0, 10**6),
)
def test_strength_is_what_was_asked(mode, kv, spectrum, s, seed):
    w, t = plant(
        Plant(
            n_layers=3,
            n_heads=4,
            n_kv_heads=kv,
            d_model=96,
            d_head=12,
            spectrum=spectrum,
            channels=3,
            mode=mode,
            strength=s,
            seed=seed,
        )
    )
    assert len(t) == 3 and set(t["mode"]) == {mode} and not t.duplicated(["src_head", "dst"]).any()
    # several channels into one reader are made orthogonal, which costs the later ones a little
    assert (measured(w, t) - s).abs().max() < 0.12 * s + 0.02


def test_spectra_are_exact_also_under_grouped_queries():
    w, _ = plant(Plant(n_heads=4, n_kv_heads=2, d_model=64, d_head=8, channels=1, spectrum="power", mode="Q"))
    want = make_spectrum("power", 8, None)
    for l in range(4):
        S = write_directions(w[l])[0]
        torch.testing.assert_close(S, want.expand(4, 8), atol=1e-4, rtol=1e-4)
    real = attention_weights("toy")
    g = torch.Generator().manual_seed(0)
    S = make_spectrum(real, 8, g)
    assert any(torch.allclose(S, write_directions(real[l])[0][h], atol=1e-5) for l in range(3) for h in range(8))


def test_same_seed_same_weights():
    a, b, c = (plant(Plant(seed=s, d_model=48, d_head=6, n_heads=4, n_kv_heads=4, channels=2)) for s in (1, 1, 2))
    assert a[0].checkpoint.sha256 == b[0].checkpoint.sha256 != c[0].checkpoint.sha256 and a[1].equals(b[1])


def test_shared_directions_are_shared():
    lean, plain = (plant(Plant(shared=4, lean=l, channels=1, seed=3))[0] for l in (0.3, 0.0))
    top = lambda w: float((e := torch.linalg.eigvalsh(reader_gram(w)))[-4:].sum() / e.sum())
    assert top(lean) > 2 * top(plain)


def test_strong_channels_are_found_by_components():
    w, t = plant(Plant(strength=0.3, seed=5))
    x = loudest(compose(w, "Q"))
    r = edge_ranks(x, [(parse_head(a), parse_head(b)) for a, b in zip(t.src_head, t.dst)])
    assert (r.filtered == 1).all()


def test_a_band_where_components_find_all_and_heads_fewer_than_half():
    found = {"component": 0, "head": 0}
    for seed in range(3):
        w, t = plant(Plant(strength=0.11, seed=seed))
        c, edges = compose(w, "Q"), {(parse_head(a), parse_head(b)) for a, b in zip(t.src_head, t.dst)}
        for k, x in (("component", loudest(c)), ("head", c.heads())):
            at = torch.stack(torch.unravel_index(x.flatten().topk(len(edges)).indices, x.shape), 1).tolist()
            found[k] += sum((Head(a, i), Head(b, j)) in edges for a, i, b, j in at)
    assert found["component"] == 30 and found["head"] < 15


def test_bad_input():
    for kw, words in (
        (dict(mode="O"), "Unknown mode"),
        (dict(spectrum="pink"), "Unknown spectrum"),
        (dict(n_heads=8, n_kv_heads=3), "evenly"),
        (dict(channels=10_000), "do not fit"),
        (
            dict(n_layers=2, n_heads=4, n_kv_heads=1, d_model=32, d_head=8, channels=4, mode="K", strength=0.99),
            "more than all it hears|do not fit",
        ),
    ):
        with pytest.raises(HeadError, match=words):
            plant(Plant(**kw))
