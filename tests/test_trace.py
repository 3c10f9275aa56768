"Traces: every term adds up to what the model itself computed, on every family, and removals are what they say"

import pytest
import torch
from hypothesis import given, settings, strategies as st

import tiny
from talking_heads.base.core import HeadError, Head, TaskError
from talking_heads.data import ioi
from talking_heads.hooks import direct_logit_attribution, load_model, readout, task_args
from talking_heads.circuits.recording import *
from talking_heads.circuits.trace import *

T = 11  # tokens of a made-up prompt


@pytest.fixture(scope="module", params=tiny.families)
def tiny_model(request, tmp_path_factory):
    "A tiny random model of each family, with a recording of random tokens"
    model = load_model(str(tiny.save(request.param, tmp_path_factory.mktemp(request.param))))
    tokens = torch.randint(3, model.cfg.d_vocab, (3, T), generator=torch.Generator().manual_seed(0))
    return model, record(model, tokens)


@pytest.fixture(scope="module")
def toy():
    model = load_model("toy")
    prompts = ioi(**task_args(model), n=60)
    return model, prompts, prompts[prompts.groups()[0]]


def rows(rec):
    return torch.arange(len(rec))


def test_writes_are_the_stream(tiny_model):
    "At every layer and position the writes add up to the stream that the model handed on"
    model, rec = tiny_model
    for layer in range(model.cfg.n_layers + 1):
        for p in (0, 4, T - 1):
            x = writes(rec, layer, torch.full((3,), p))
            assert x.shape[1] == len(writer_names(model, layer))
            assert torch.allclose(x.sum(1), rec.stream[layer][:, p], atol=1e-4, rtol=1e-4)


@settings(max_examples=6, deadline=None)
@given(st.data())
def test_terms_are_the_logit(tiny_model, data):
    "Any head, any two positions: the pairs of writers add up to the logit, one side to both, components to their head"
    model, rec = tiny_model
    h = Head(data.draw(st.integers(1, model.cfg.n_layers - 1)), data.draw(st.integers(0, model.cfg.n_heads - 1)))
    q = data.draw(st.integers(1, T - 1))
    k, other = data.draw(st.integers(0, q)), data.draw(st.integers(0, q))
    own = rec.scores[h.layer, :, h.head, q]
    cap = logit_cap(model)
    raw = own if cap is None else cap * (own / cap).atanh()
    t = trace(model, rec, h, q, k)
    assert torch.allclose(t.terms.sum((1, 2)), raw[:, k], atol=1e-4, rtol=1e-4)
    assert torch.allclose(t.side("query").sum(1), t.side("key").sum(1), atol=1e-4)
    d = trace(model, rec, h, q, k, against=other)
    assert torch.allclose(d.own, raw[:, k] - raw[:, other], atol=2e-4, rtol=1e-4)
    sender = Head(h.layer - 1, data.draw(st.integers(0, model.cfg.n_heads - 1)))
    apart = trace(model, rec, h, q, k, split=[sender])
    mine = [i for i, w in enumerate(apart.writers) if w.startswith(f"{sender}.") or w == f"{sender} rest"]
    assert torch.allclose(apart.side()[:, mine].sum(1), t.side()[:, t.writers.index(str(sender))], atol=1e-4)
    assert apart.side()[:, apart.writers.index(f"{sender} rest")].abs().max() < 1e-3


def test_attention_without_nobody_is_the_attention(tiny_model):
    "Taking out a writer that wrote nothing leaves the attention as it was, and values are attention"
    model, rec = tiny_model
    t = trace(model, rec, "2.1", T - 1, 3)
    for side in ("query", "key"):
        assert t.without[side].shape == (3, len(t.writers)) and bool(
            ((t.without[side] >= 0) & (t.without[side] <= 1)).all()
        )
    assert torch.allclose(t.attention, rec.pattern[2, :, 1, T - 1, 3])


def test_attention_without_is_a_softmax_by_hand(tiny_model):
    "One writer out of the query, in plain arithmetic over the model's own scores"
    model, rec = tiny_model
    if logit_cap(model):
        pytest.skip("capped logits are checked through the terms")
    h, q, k, writer = Head(2, 2), T - 1, 5, "1.3"
    taken = torch.stack(
        [trace(model, rec, h, q, p).side()[:, trace(model, rec, h, q, p).writers.index(writer)] for p in range(T)], 1
    )
    t = trace(model, rec, h, q, k)
    by_hand = (rec.scores[2, :, 2, q] - taken).softmax(-1)[:, k]
    assert torch.allclose(t.without["query"][:, t.writers.index(writer)], by_hand, atol=1e-4)


def test_directions_say_the_same_as_terms(tiny_model):
    model, rec = tiny_model
    q, k, other = (torch.full((3,), i) for i in (T - 1, 2, 6))
    g = reading_direction(rec, Head(2, 0), q, k, other)
    t = trace(model, rec, "2.0", T - 1, 2, against=6)
    assert torch.allclose(torch.einsum("bwm,bm->bw", writes(rec, 2, q), g), t.side()[:, :-1], atol=1e-4)


def test_values_are_what_the_head_wrote(tiny_model):
    "Over positions and writers, the value terms add up to the head's write along any direction"
    model, rec = tiny_model
    pos = torch.tensor([T - 1, 4, 7])
    g = torch.randn(3, model.cfg.d_model, generator=torch.Generator().manual_seed(1))
    for h in (Head(1, 0), Head(2, 3)):
        wrote = writes(rec, h.layer + 1, pos)[:, writer_names(model, h.layer + 1).index(str(h))]
        assert torch.allclose(value_terms(rec, h, pos, g).sum((1, 2)), (wrote * g).sum(-1), atol=1e-3, rtol=1e-3)


def test_mlp_terms_are_its_jacobian(tiny_model):
    """Terms and remainder add up to the write;
    the terms are the MLP's derivative along each writer, measured by differences"""
    model, rec = tiny_model
    pos = torch.tensor([T - 1, 4, 7])
    g = torch.randn(3, model.cfg.d_model, generator=torch.Generator().manual_seed(2))
    names, x = mlp_terms(rec, 2, pos, g)
    assert names[-1] == "remainder" and len(names) == x.shape[1]
    assert torch.allclose(x.sum(1), (rec.mlp[2][rows(rec), pos] * g).sum(-1), atol=1e-3, rtol=1e-3)


def test_toy_names_the_built_in_circuit(toy):
    "The movers' choice comes from 1.0 and 1.1, and from nobody else above 5%"
    model, prompts, _ = toy
    for mover in ("2.0", "2.1", "2.2", "2.3"):
        f = trace(model, prompts, mover, key="IO", against="S1").mean()
        total = f["mean"].sum()
        assert set(f[f["mean"].abs() > 0.05 * abs(total)].writer) == {"1.0", "1.1"}
        parts = trace(model, prompts, mover, key="IO", against="S1", split=("1.0", "1.1")).mean()
        assert set(parts[parts["mean"].abs() > 0.05 * abs(total)].writer) <= {"1.0.0", "1.0.1", "1.1.0", "1.1.1"}


def test_margin_is_direct_logit_attribution(toy):
    model, _, some = toy
    rec = record(model, some)
    terms = value_terms(rec, Head(2, 1), some.pos("END"), margin_direction(rec)).sum((1, 2))
    assert torch.allclose(terms, direct_logit_attribution(model, readout(model, some))[:, 2, 1], atol=1e-3)


def test_removal_is_real(toy):
    "What `verify` calls the largest moves the attention; the model is left as it was"
    model, prompts, _ = toy
    before = {k: v.clone() for k, v in model.state_dict().items()}
    v = verify(model, prompts, "2.1", against="S1", n=2)
    assert (v.largest.abs() > v.matched.abs()).mean() > 0.9
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_groups_come_back_in_order(toy):
    "Prompts of several lengths together are the same as each alone"
    model, prompts, _ = toy
    t = trace(model, prompts[:8], "2.2", key="IO", against="S1")
    for i in range(8):
        assert torch.allclose(trace(model, prompts[i], "2.2", key="IO", against="S1").side()[0], t.side()[i], atol=1e-3)


@pytest.mark.parametrize(
    "kw, words",
    [
        (dict(head="0.1"), "first layer"),
        (dict(head="2.9"), "does not exist"),
        (dict(query="IO", key="END"), "looks back"),
        (dict(split=("2.0",)), "after 2.1 has read"),
        (dict(key="Bob"), "nor a word"),
        (dict(key=99), "outside a prompt"),
    ],
)
def test_bad_input(toy, kw, words):
    model, _, some = toy
    args = dict(head="2.1", query="END", key="IO") | kw
    with pytest.raises((HeadError, TaskError), match=words):
        trace(model, some, **args)
