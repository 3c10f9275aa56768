"The positional toy: names it never saw, a channel that says which place, training that repeats to the bit"

import json

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from talking_heads.base.checkpoints import find_checkpoint
from talking_heads.composition import write_directions
from talking_heads.base.core import *
from talking_heads.data import *
from talking_heads.evaluation import *
from talking_heads.hooks import *
from talking_heads.svd import attention_weights
from talking_heads.toys.toy_position import *
from talking_heads.toys.toy_position import _interchanged


@pytest.fixture(scope="module")
def model():
    return load_model("toy-position", device="cpu")


@pytest.fixture(scope="module")
def prompts(model):
    return ioi(**task_args(model), n=240, seed=77)


@pytest.fixture(scope="module")
def read(model, prompts):
    return readout(model, prompts)


def test_plain_transformers_load_it(model):
    c = find_checkpoint("TOY-position")
    assert c.source == "embedded" and (c.path / "model.safetensors").stat().st_size < 500_000
    plain, tok = AutoModelForCausalLM.from_pretrained(c.path).eval(), AutoTokenizer.from_pretrained(c.path)
    p = ioi(tok, n=8, bos=True)
    g = p.groups()[0]
    with torch.no_grad():
        torch.testing.assert_close(plain(p[g].tokens).logits, model(p[g].tokens), atol=1e-4, rtol=1e-4)


def test_it_solves_ioi_and_looks_where_it_was_told(read):
    assert prompt_scores(read).top1.mean() >= 0.99
    io, s1, s2 = read.attention.unbind(-1)
    assert (
        float(s2[:, 2, :2].mean()) > 0.9
        and float(io[:, 3, :4].mean()) > 0.9
        and float(read.attention[:, 2, 2:].sum(-1).mean()) < 0.05
    )


def test_names_it_never_saw(model, prompts):
    "Other names, drawn here, are answered as well: nothing was learned about any one of them"
    names = sorted({p.answer_id for p in prompts} | {p.distractor_ids[0] for p in prompts})
    w = model.original_model.transformer.wte.weight
    kept = w.detach().clone()
    draw_names(model, torch.tensor(names), kept[names].mean(0), torch.Generator().manual_seed(99))
    got = prompt_scores(readout(model, prompts)).top1.mean()
    with torch.no_grad():
        w.copy_(kept)
    assert got >= 0.97


def test_coordinates_say_place_and_not_name(model, prompts, read):
    c, f = first_coordinates(model, read, ["2.0", "2.1"]), prompts.frame()
    for h in (0, 1):
        place, name = explained(c[:, h], f.order), explained(c[:, h], f.S)
        assert place > 0.8 and abs(name) < 0.25 and explained(c[:, h], f.template) < 0.1
    S, _ = write_directions(attention_weights(model)[2])
    assert (S[:2, 1:] < 1e-5).all() and (S[:2, 0] > 0.05).all()


def test_the_answer_follows_the_place_here_and_the_word_in_toy(model, prompts):
    rate = lambda m, p, how, layer, heads: float(changed(m, p, how, layer, heads).double().mean())
    assert rate(model, prompts, "place", 2, [0, 1]) >= 0.95 and rate(model, prompts, "word", 2, [0, 1]) <= 0.05
    assert rate(model, prompts, "both", 2, [6, 7]) <= 0.05
    toy = load_model("toy", device="cpu")
    p = ioi(**task_args(toy), n=240, seed=77)
    assert rate(toy, p, "word", 1, [0, 1]) >= 0.95 and rate(toy, p, "place", 1, [0, 1]) <= 0.05


def test_another_prompts_place_with_other_words(model, prompts):
    "What the two heads say at END of any donor decides the place, and the recipient's own names fill it"
    g = prompts.groups(400)[0]
    p = prompts[g]
    donor = torch.randperm(len(p), generator=torch.Generator().manual_seed(0))
    first, second = torch.minimum(p.pos("IO"), p.pos("S1")), torch.maximum(p.pos("IO"), p.pos("S1"))
    place = torch.where(p.pos("IO") > p.pos("S1"), 1, 0)[donor]
    want = p.tokens[torch.arange(len(p)), torch.where(place == 1, second, first)]
    assert (answers_after(model, p.tokens, p.tokens[donor], 2, [0, 1]) == want).double().mean() >= 0.95


def test_donors_are_what_they_say(prompts):
    for how, same_word in (("both", False), ("word", False), ("place", True)):
        d, t, b = donors(prompts, how), prompts.tokens, torch.arange(len(prompts))
        io, s1, s2 = (prompts.pos(r) for r in ("IO", "S1", "S2"))
        assert (d[b, s2] == t[b, s2]).all() if same_word else (d[b, s2] == t[b, io]).all()
        assert (d[b, s2] == d[b, s1]).all() if how == "word" else (d[b, s2] == d[b, io]).all()
        assert {tuple(sorted(x)) for x in d.tolist()} and (d != t).any(1).all()


def test_explained_is_zero_by_chance_and_one_for_its_own_groups():
    g = torch.Generator().manual_seed(0)
    chance = [
        explained(torch.randn(600, generator=g), torch.randint(140, (600,), generator=g).tolist()) for _ in range(40)
    ]
    assert abs(sum(chance) / 40) < 0.02
    x = torch.randint(5, (300,), generator=g)
    assert explained(x.float(), x.tolist()) == pytest.approx(1)


def test_interchange_hook_moves_only_the_named_heads_at_end_and_is_removed():
    m = new_toy_position(1)
    x, end, donor = (
        torch.randint(3, 200, (3, 9), generator=torch.Generator().manual_seed(0)),
        torch.tensor([8, 8, 8]),
        torch.tensor([1, 2, 0]),
    )
    with torch.no_grad():
        before = m(x).logits
        with _interchanged(m, torch.arange(3), end, 2):
            torch.testing.assert_close(m(x).logits, before)
        with _interchanged(m, donor, end, 2):
            other = m(x).logits
        assert torch.equal(m(x).logits, before)
    assert torch.equal(other[:, :8], before[:, :8]) and not torch.allclose(other[:, 8], before[:, 8])


def test_training_repeats_to_the_bit_and_begins_as_committed():
    threads = torch.get_num_threads()
    a, b = (train_toy_position(2, size=300, total=1200)[0].state_dict() for _ in range(2))
    assert all(torch.equal(a[k], b[k]) for k in a) and torch.get_num_threads() == threads
    committed = json.loads((find_checkpoint("toy-position").path / "toy.json").read_text())
    _, _, log = train_toy_position(3, seed=committed["seed"], total=1200)
    torch.testing.assert_close(torch.tensor(log), torch.tensor(committed["first"][:3]), atol=1e-3, rtol=1e-3)


def test_what_was_tried_is_there_and_says_so():
    t = pd.DataFrame(
        json.loads((find_checkpoint("toy-position").path / "trainings.json").read_text())["rows"]
    ).set_index("training")
    assert set(t.index) == set(trainings)
    with_it = t.loc["names drawn anew, interchange"]
    assert with_it["other place"] >= 0.95 and with_it["other word"] <= 0.05
    without = t.drop(index=[i for i in t.index if "interchange" in i])
    assert (without["other word"] > 0.5).all() and (without["other place"] < 0.5).all()
