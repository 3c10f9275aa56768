"Circuits found without being told: the toys' own and nothing else, and nothing where there is nothing"
from dataclasses import replace

import pytest
import torch

from talking_heads.base.core import TaskError
from talking_heads.data import ioi, ioi_task
from talking_heads.hooks import load_model, readout, task_args
from talking_heads.circuits.circuit import *

MOVERS = {"2.0", "2.1", "2.2", "2.3"}

def triples(f): return set(zip(f.sender, f.reader, f["mode"]))

@pytest.fixture(scope="module")
def toy(): return load_model("toy")

@pytest.fixture(scope="module")
def found(toy): return find_circuit(toy, "ioi", n=60, depth=2)

def test_toy_is_found(found):
    "Four movers hear the two inhibition heads through their queries, and nobody else"
    assert set(found.writers[found.writers.called].writer) == MOVERS
    first = found.edges[found.edges.level == 1]
    assert triples(first) == {(s, r, "Q") for s in ("1.0", "1.1") for r in MOVERS}

def test_explained(found):
    "Called edges explain nearly what all measured ones do; random ones do not"
    share = found.explained()["share"]
    full = found.explained(len(found.measured))["share"]
    assert share > .8*full and full > .7
    assert found.explained(len(found.edges), at_random=0)["share"] < .5*share
    assert abs(found.explained(0)["share"]) < .2

def test_same_seed_same_numbers_and_the_model_as_found(toy, found):
    before = readout(toy, ioi(**task_args(toy), n=8)).logits
    again = find_circuit(toy, "ioi", n=60, depth=1)
    assert torch.equal(readout(toy, ioi(**task_args(toy), n=8)).logits, before)
    assert again.writers.equals(found.writers)
    assert triples(again.edges) == triples(found.edges[found.edges.level == 1])
    assert found.chart().to_dict() and "writers" in found._repr_html_()

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
