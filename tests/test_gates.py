"Gates: the fit by another solver, separation by counting, and that an edit behind a gate acts where it opens"

import pytest
import torch
from hypothesis import given, settings, strategies as st

from talking_heads.base.store import stored_study
from talking_heads.edits.gates import *
from talking_heads.edits.guards import margin_guard, text_guard, wording_lists
from talking_heads.edits.parametrisations import Rank1, Together
from talking_heads.edits.upper_layers import UpperLayers
from talking_heads.hooks import load_model
from talking_heads.interventions import edited


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 12), st.floats(0.5, 500), st.floats(0, 1))
def test_a_gate_is_weighted_ridge_regression(seed, d, ridge, below):
    "By least squares on rows that stand for the penalty, in float64"
    act, leave, text = draw(seed, 9, d) + 1, draw(seed + 1, 7, d), draw(seed + 2, 11, d)
    X = torch.cat([act, leave, text]).double()
    size = X.std(0)
    y = torch.tensor([1.0] * 9 + [-below] * 7 + [0.0] * 11).double()
    w = torch.tensor([1.0] * 16 + [0.5] * 11).double().sqrt()
    A = torch.cat([X / size * w[:, None], ridge**0.5 * torch.eye(d).double()])
    b = torch.cat([y * w, torch.zeros(d).double()])
    want = torch.linalg.lstsq(A, b[:, None]).solution[:, 0] / size
    assert torch.allclose(gate(act, leave, text, ridge, below).double(), want, atol=1e-5, rtol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=8), st.lists(st.integers(-3, 3), min_size=1, max_size=8))
def test_separation_is_counted(x, y):
    act, leave = (torch.tensor(v, dtype=torch.float32)[:, None] for v in (x, y))
    won = sum((i > j) + 0.5 * (i == j) for i in x for j in y)
    assert separation_of(torch.ones(1), act, leave) == pytest.approx(won / len(x) / len(y))


def test_what_is_fixed_stays_and_the_edit_is_what_was_added():
    "In the weights, at every position of plain text; a gate at random is as long and another"
    model = load_model("toy", device="cpu")
    upper = UpperLayers(model, 1)
    text, names = text_guard(upper, n=6, length=10), margin_guard(upper, n=12, window=None)
    lists = wording_lists(upper, 12, (3,), window=None)
    batches = [b for b, _ in names.batches]
    free, fixed = (gated_queries(upper, [2], lists, batches, text.batches[0][0], 1.0, fixed=f) for f in (False, True))
    assert isinstance(free, Together) and isinstance(free.parts[0], Rank1) and isinstance(fixed.parts[0], Gated)
    assert torch.equal(free.parts[0].read, fixed.parts[0].part.read)
    assert len(free.start()) == len(fixed.start()) + model.cfg.d_model
    u = draw(0, len(fixed.start())) / 10
    tokens = text.batches[0][1]
    entry = text.batches[0][0].entry
    with torch.no_grad():
        want = upper.logits(upper.run(entry, fixed.added(model, u, 0.5)))
        with edited(model, fixed.edit(model, u, "gated").scaled(0.5)):
            got = model(tokens)
    assert torch.allclose(got, want, atol=1e-3) and not torch.allclose(got, model(tokens), atol=1e-3)
    (other,) = random_gates(fixed, 1).parts
    assert other.part.read.norm() == pytest.approx(float(fixed.parts[0].part.read.norm()), rel=1e-4)
    assert abs(torch.cosine_similarity(other.part.read, fixed.parts[0].part.read, 0)) < 0.6
    assert torch.equal(other.part.read, random_gates(fixed, 1).parts[0].part.read)


def test_the_stored_table_says_what_it_was_made_by():
    "Rows for every layer, split and gate; the chapter's sentence: near relatives are told apart, others hardly"
    about, rows = stored_study("smollm2_gates.json"), stored_gates()
    assert len(about["code"]) == len(about["sha256"]) == 64
    assert len(rows) == rows.layer.nunique() * 3 * 2 and not rows.isna().any().any()
    of = rows[rows.gate == "fitted"].pivot_table(index="layer", columns="split", values="separation")
    assert (of.choose > of.judge).all() and (of.judge > 0.5).all()
