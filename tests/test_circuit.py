"Circuits found without being told: the toys' own and nothing else, and nothing where there is nothing"
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from talking_heads.base.checkpoints import find_checkpoint
from talking_heads.base.core import TaskError
from talking_heads.data import ioi, ioi_task
from talking_heads.hooks import load_model, readout, task_args
from talking_heads.circuits.circuit import *
from talking_heads.circuits.edges import margin_at_end

MOVERS = {"2.0", "2.1", "2.2", "2.3"}

def triples(f): return set(zip(f.sender, f.reader, f["mode"]))

@pytest.fixture(scope="module")
def toy(): return load_model("toy")

@pytest.fixture(scope="module")
def found(toy): return find_circuit(toy, "ioi", n=60, depth=1)

def test_toy_is_found(found):
    "Four movers hear the two inhibition heads through their queries, and nobody else"
    assert set(found.writers[found.writers.called].writer) == MOVERS
    assert triples(found.edges) == {(s, r, "Q") for s in ("1.0", "1.1") for r in MOVERS}

def test_explained(found):
    "Called edges explain nearly what all measured ones do; random ones do not"
    share = found.explained()["share"]
    full = found.explained(len(found.measured))["share"]
    assert share > .8*full and full > .7
    assert found.explained(len(found.edges), at_random=0)["share"] < .5*share
    assert abs(found.explained(0)["share"]) < .2

def test_same_seed_same_numbers_and_the_model_as_found(toy, found):
    before = readout(toy, ioi(**task_args(toy), n=8)).logits
    again = find_circuit(toy, "ioi", n=60, depth=0)
    assert torch.equal(readout(toy, ioi(**task_args(toy), n=8)).logits, before)
    assert again.writers.equals(found.writers) and not len(again.edges)
    assert found.chart().to_dict() and "direct effect" in found._repr_html_()

def louder(folder, layer, head, factor):
    "The toy with what one head reads as values made larger"
    path = find_checkpoint("toy").path
    model = AutoModelForCausalLM.from_pretrained(path)
    d, n = model.config.n_embd, model.config.n_head
    columns = slice(2*d+head*d//n, 2*d+(head+1)*d//n)
    with torch.no_grad(): model.transformer.h[layer].attn.c_attn.weight[:, columns] *= factor
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(path).save_pretrained(folder)
    return load_model(str(folder))

def test_a_loud_head_that_nobody_uses_is_not_called(tmp_path):
    "Thirty times louder, and the circuit is the built-in one"
    c = find_circuit(louder(tmp_path, 1, 5, 30.), "ioi", n=60, depth=1)
    assert set(c.writers[c.writers.called].writer) == MOVERS
    assert triples(c.edges) == {(s, r, "Q") for s in ("1.0", "1.1") for r in MOVERS}

def test_a_task_without_twins(toy):
    "The mean over other prompts takes all names away, so more is called than with twins, but no other writer"
    c = find_circuit(toy, replace(ioi_task, twin=None), n=160, depth=0)
    assert set(c.writers[c.writers.called].writer) == MOVERS
    assert c.provenance["against"] == "mean over other prompts"
    fall = float((c.margins[0]-c.margins[1]).mean())
    edges, _ = level(c.contrasts, {"2.1": list(map(margin_at_end, c.contrasts))}, fall)
    assert {("1.0", "2.1", "Q"), ("1.1", "2.1", "Q")} <= triples(edges[edges.called])

def test_stored_circuit_of_smollm2():
    "Movers, and the inhibition heads that reach them through their queries, by the first component of 20.0"
    w, e, p = (stored_circuit(k) for k in ("writers", "edges", "components"))
    effect = w[w.called].set_index("writer").effect
    assert (effect[["23.0", "23.1", "23.2", "23.7"]] > 0).all() and effect["24.4"] < 0
    first = e[(e.level == 1) & (e["mode"] == "Q")]
    for r in ("23.0", "23.1", "23.2", "23.7"): assert first[first.reader == r].sender.tolist()[:2] == ["20.0", "19.2"]
    main = p[(p.component == "20.0.0") & (p["mode"] == "Q")].set_index("reader").share
    assert (main[["23.0", "23.1", "23.2", "23.7"]] > .8).all()
    curve = stored_circuit("curve").set_index("kept")
    strong, other = (curve[curve.edges == k].loc[64] for k in ("strongest", "random"))
    assert strong.share > .8 and strong.heads < .05 and other.share.max() < .15

def test_toy_position_is_found():
    "Movers hear 2.0 and 2.1 through queries, and those hear 1.0 and 1.1 through values"
    c = find_circuit(load_model("toy-position"), "ioi", n=60, depth=2)
    assert set(c.writers[c.writers.called].writer) == {"3.0", "3.1", "3.2", "3.3"}
    edges = c.edges
    assert triples(edges[edges.level == 1]) == {(f"2.{i}", f"3.{j}", "Q") for i in (0, 1) for j in range(4)}
    assert triples(edges[edges.level == 2]) == {(f"1.{i}", f"2.{j}", "V") for i in (0, 1) for j in (0, 1)}

def wrong_way(tokenizer, n, seed, split, bos):
    "IOI with the wrong name as the answer"
    made = ioi(tokenizer, n, seed, bos)
    def turn(p):
        return replace(p, answer=p.distractors[0], answer_id=p.distractor_ids[0], distractors=(p.answer,),
                       distractor_ids=(p.answer_id,))
    return replace(made, prompts=tuple(map(turn, made)))

def test_nothing_to_explain(toy):
    with pytest.raises(TaskError, match="cannot do the task 'ioi'.*not above 0"):
        find_circuit(toy, replace(ioi_task, make=wrong_way), n=20)
    with pytest.raises(TaskError, match="do not lower"):
        find_circuit(toy, replace(ioi_task, twin=lambda prompts, how, seed: prompts), n=20)
