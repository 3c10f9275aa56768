"The effect of an edge equals that of plain hooks on transformers' own modules in float64, on every family"
import pytest
import torch
from transformers import AutoModelForCausalLM

import tiny
from talking_heads.base.core import Head, TaskError
from talking_heads.data import Prompt, Prompts
from talking_heads.hooks import load_model
from talking_heads.circuits.edges import *
from talking_heads.circuits.recording import record

T, B = 9, 3

def made_up(model, seed=0):
    "Random tokens as prompts, and twins that differ at two positions"
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, model.cfg.d_vocab, (B, T), generator=g)
    other = ids.clone()
    other[:, 2], other[:, 6] = torch.randint(3, model.cfg.d_vocab, (2, B), generator=g)
    def prompt(row): return Prompt("made up", tuple(row.tolist()), {"END": T-1}, {}, "x", 3, ("y",), (4,))
    bos = bool(model.cfg.default_prepend_bos)
    return [Prompts(tuple(map(prompt, x)), "made up", bos, 0) for x in (ids, other)]

class Plain:
    "A transformers model in float64, with what each head's query, key and value projection gives"
    def __init__(self, folder):
        self.hf = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").double().eval()
        base = self.hf.base_model
        self.layers = base.h if hasattr(base, "h") else base.layers
        c = self.hf.config
        self.n, self.kv = c.num_attention_heads, getattr(c, "num_key_value_heads", None) or c.num_attention_heads
        self.dh = getattr(c, "head_dim", None) or c.hidden_size//self.n
    def attention(self, l):
        x = self.layers[l]
        return next(getattr(x, k) for k in ("attn", "attention", "self_attn") if hasattr(x, k))
    def out(self, l):
        a = self.attention(l)
        return next(getattr(a, k) for k in ("c_proj", "dense", "o_proj") if hasattr(a, k))
    def after(self, l):
        "The module whose output is added to the stream"
        x = self.layers[l]
        gemma = hasattr(x, "pre_feedforward_layernorm")
        if gemma or type(x).__name__.startswith("Olmo2"): return x.post_attention_layernorm
        return self.out(l)
    def parts(self, l, head, mode):
        "Module and columns that hold one head's query, key or value"
        a, i, dh = self.attention(l), "QKV".index(mode), self.dh
        kv = head if mode == "Q" else head*self.kv//self.n
        if hasattr(a, "c_attn"): return a.c_attn, slice(i*self.n*dh+head*dh, i*self.n*dh+(head+1)*dh)
        if hasattr(a, "query_key_value"): return a.query_key_value, slice((3*head+i)*dh, (3*head+i+1)*dh)
        if hasattr(a, "qkv_proj"):
            start = (0, self.n, self.n+self.kv)[i]*dh
            return a.qkv_proj, slice(start+kv*dh, start+(kv+1)*dh)
        return getattr(a, mode.lower()+"_proj"), slice(kv*dh, (kv+1)*dh)
    @torch.no_grad()
    def run(self, tokens, hooks):
        "hooks: (module, function of its output, or of its input with pre=True)"
        handles = []
        for m, f, pre in hooks:
            if pre: handles.append(m.register_forward_pre_hook(lambda m, a, f=f: (f(a[0]), *a[1:])))
            else: handles.append(m.register_forward_hook(lambda m, a, y, f=f: f(y)))
        try: self.hf(input_ids=tokens, use_cache=False)
        finally: [h.remove() for h in handles]

def keep(box, name):
    def f(x):
        box[name] = x.clone()
        return x
    return f

def plain_message(p, tokens, other, sender):
    "What a sender writes on the twin less what it writes on the prompt; after attention's norm where there is one"
    box = {}
    if sender == "embedding":
        p.run(tokens, [(p.layers[0], keep(box, "a"), True)])
        p.run(other, [(p.layers[0], keep(box, "b"), True)])
        return box["b"]-box["a"]
    l, h = sender
    p.run(other, [(p.out(l), keep(box, "z"), True)])
    def instead(x):
        x = x.clone()
        x[..., h*p.dh:(h+1)*p.dh] = box["z"][..., h*p.dh:(h+1)*p.dh]
        return x
    p.run(tokens, [(p.after(l), keep(box, "a"), False)])
    p.run(tokens, [(p.out(l), instead, True), (p.after(l), keep(box, "b"), False)])
    return box["b"]-box["a"]

def plain_effect(p, tokens, message, reader, mode, g):
    "Fall of the reader's write along g at the last position, with the message in one of its inputs alone"
    l, h, box = *reader, {}
    module, columns = p.parts(l, h, mode)
    where = -1 if mode == "Q" else slice(None)
    def add(x):
        x = x.clone()
        x[:, where] += message[:, where]
        return x
    p.run(tokens, [(p.layers[l], add, True), (module, keep(box, "patched"), False)])
    def instead(x):
        x = x.clone()
        x[..., columns] = box["patched"][..., columns]
        return x
    def alone(x): # other heads of a KV group keep their output
        keep_ = box["z"].clone()
        keep_[..., h*p.dh:(h+1)*p.dh] = x[..., h*p.dh:(h+1)*p.dh]
        return keep_
    p.run(tokens, [(p.out(l), keep(box, "z"), True), (p.after(l), keep(box, "clean"), False)])
    p.run(tokens, [(module, instead, False), (p.out(l), alone, True), (p.after(l), keep(box, "new"), False)])
    return ((box["clean"]-box["new"])[:, -1]*g).sum(-1)

distinct = [f for f in tiny.families if f not in ("mistral", "qwen2")] # computed as Llama is

@pytest.fixture(scope="module", params=distinct)
def family(request, tmp_path_factory):
    folder = tiny.save(request.param, tmp_path_factory.mktemp(request.param))
    model = load_model(str(folder))
    prompts, twins = made_up(model)
    return model, Plain(folder), next(contrasts(model, prompts, twins))

def test_effects_are_those_of_plain_hooks(family):
    "Embedding and heads as senders, all three modes, and what attention's output norm makes of both ends"
    model, plain, c = family
    tokens, other = c.rec.tokens, made_up(model)[1].tokens
    G = torch.zeros_like(c.rec.embed)
    G[:, -1] = torch.randn(B, model.cfg.d_model, generator=torch.Generator().manual_seed(5))
    m, names = messages(c, 2), sender_names(model, 2)
    for head in (Head(2, 3), Head(2, 0)):
        r = reader(c, head, G)
        ch = choice(r, c.stream[2])
        for sender in ("embedding", (0, 1), (1, 2)):
            name = sender if sender == "embedding" else "{}.{}".format(*sender)
            i, message = names.index(name), plain_message(plain, tokens, other, sender)
            assert torch.allclose(m[:, i].double(), message, atol=2e-4, rtol=1e-4)
            for mode in "QKV":
                got = edge_effects(r, m[:, i:i+1], mode, ch)[0][:, 0]
                want = plain_effect(plain, tokens, message, head, mode, G[:, -1].double())
                assert torch.allclose(got.double(), want, atol=2e-3, rtol=2e-3), (name, mode, got, want)

def test_a_small_message_has_its_gradient(family):
    "The gradient screen is the limit of the exact effect, and the trace is its logit"
    model, _, c = family
    G = torch.zeros_like(c.rec.embed)
    G[:, -1], G[:, 4] = torch.randn(2, B, model.cfg.d_model, generator=torch.Generator().manual_seed(6))
    r, m = reader(c, Head(2, 1), G), messages(c, 2)[:, :4]
    ch = choice(r, c.stream[2])
    for mode in "QKV":
        first = gradient_screen(r, m, mode)
        small = edge_effects(r, m*1e-2, mode, ch)[0]/1e-2
        assert torch.allclose(first, small, atol=.05*float(first.abs().max())+1e-3)

def test_without_twins_the_others_are_the_other_side(tmp_path):
    model = load_model(str(tiny.save("llama", tmp_path)))
    prompts, _ = made_up(model)
    c = next(contrasts(model, prompts))
    rec = record(model, prompts)
    assert torch.allclose(c.embed[0], rec.embed[1:].mean(0), atol=1e-6)
    assert torch.allclose(c.z[:, 2], rec.z[:, :2].mean(1), atol=1e-5)
    with pytest.raises(TaskError, match="only prompt of 9 tokens"): next(contrasts(model, prompts[[0]]))
