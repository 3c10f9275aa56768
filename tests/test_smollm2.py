"The embedded model: what is known about it must come out, with nothing in the code knowing it"

import re
from pathlib import Path

import pytest
import torch

from talking_heads.data import *
from talking_heads.evaluation import *
from talking_heads.hooks import *
from talking_heads.svd import attention_weights
from talking_heads.circuits.patching import *
from talking_heads.circuits.finding import *
from talking_heads.circuits.removal import falls, head_components, remove_each

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model():
    return load_model("smollm2", device="cpu")


@pytest.fixture(scope="module")
def prompts(model):
    return ioi(**task_args(model), n=120)


@pytest.fixture(scope="module")
def r(model, prompts):
    return readout(model, prompts)


def test_ioi(r):
    df = prompt_scores(r)
    assert df.correct.mean() >= 0.95 and 3.5 <= df.logit_diff.mean() <= 6.5


@pytest.fixture(scope="module")
def called(model, prompts, r):
    heads = find_heads(model, prompts, r=r, n_ablate=45)
    return lambda c: heads[(heads.cls == c) & heads.called].sort_values("score", ascending=False).name.tolist()


def test_heads(called):
    assert {"23.0", "23.1", "23.2", "23.7"} <= set(called("mover")) and "24.4" in called("negative_mover")
    assert called("inhibition")[0] == "20.0" and "19.2" in called("inhibition")[:4]


def test_no_head_is_named_in_the_code():
    "Only `detection` lists heads: the edges that methods are judged against, never what a method reads"
    for f in (Path(__file__).parents[1] / "talking_heads").rglob("*.py"):
        if f.name == "detection.py":
            continue
        code = re.sub(r"#.*", "", f.read_text())
        assert not re.search(r"\b(23\.[01237]|20\.0|19\.2|24\.4)\b", code), f


@pytest.mark.parametrize("n_items,known", [(2, 1.0), (3, 0.95), (5, 0.56), (8, 0.34)])
def test_lists_fail_as_known(model, n_items, known):
    "Within 6 points of an independent measurement, or as near as our own interval can tell"
    df = prompt_scores(readout(model, laundry_list(**task_args(model), n_items=n_items, n=96), to=()))
    i = interval(torch.tensor(df.correct.to_numpy()))
    assert i["low"] - 0.06 <= known <= i["high"] + 0.06


def test_gqa_inhibition_by_hand(model, prompts):
    "The sweep's first head, silenced by a hand-written hook on the plain projection"
    few = prompts[:4].where(template=0)
    fast = ablation_sweep(model, few, ["23.0"])
    mean = readout(model, few).z[:, 20, 0].mean(0)
    o = model.original_model.model.layers[20].self_attn.o_proj

    def hook(mod, args):
        z = args[0].clone()
        z.view(len(z), z.shape[1], 9, 64)[:, -1, 0] = mean
        return (z,)

    target = getattr(o, "original_component", o)
    handle = target.register_forward_pre_hook(hook)
    try:
        slow = readout(model, few).attention[:, 23, 0]
    finally:
        handle.remove()
    torch.testing.assert_close(fast[:, 20, 0, 0], slow, atol=1e-4, rtol=1e-4)


def test_one_component_carries_the_message(model, prompts):
    "Removing 20.0.0 at END takes most of the movers' inhibition score, other components of the head next to nothing"
    names, dirs = head_components(attention_weights("smollm2", "folded"), ["20.0"])
    few = [0, 7, 19, 33, 52]
    v = remove_each(model, prompts[:60], [dirs[i] for i in few], ["23.0", "23.1", "23.2", "23.7"], logits=False)
    f = falls(v, [names[i] for i in few]).set_index("name").relative
    assert f["20.0.0"] > 0.6 and f.drop("20.0.0").abs().max() < 0.15
