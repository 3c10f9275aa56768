"Channels: planted directions are found and merged, chains followed, the same from score tables"

import pytest
import torch

from test_composition import Weights, random_layer
from talking_heads.weights.channels import *
from talking_heads.composition import *
from talking_heads.base.core import *
from talking_heads.svd import *


def planted(seed=0, d=96, r=6, H=4):
    "Random layers; 0.1 and 1.2 write along one line, 3.0 and 3.3 read it in Q; 0.3 writes another, read by 1.2 in V"
    g = torch.Generator().manual_seed(seed)
    t = lambda *s: torch.randn(*s, generator=g)
    layers = [
        LayerWeights(t(H, d, r), t(H, d, r), t(H, d, r), t(H, r, d), *(torch.zeros(H, r),) * 3, torch.zeros(d))
        for _ in range(4)
    ]
    a, b = torch.nn.functional.normalize(t(2, d), dim=-1)

    def write(l, h, v):
        layers[l].W_O[h] += 60 * torch.outer(t(r) / r**0.5, v)

    def read(W, h, v):
        W[h] += 60 * torch.outer(v, t(r) / r**0.5)

    write(0, 1, a), write(1, 2, -a), write(0, 3, b)
    read(layers[3].W_Q, 0, a), read(layers[3].W_Q, 3, a), read(layers[1].W_V, 2, b)
    return Weights(layers), a, b


@pytest.mark.parametrize("seed", range(3))
def test_planted_channel(seed):
    W, a, b = planted(seed)
    scores = compose(W)
    found = find_channels(scores["Q"], W, z=9.0, q=1.0)
    assert (
        {n.rsplit(".", 1)[0] for n in found[0].writers} == {"0.1", "1.2"}
        and set(found[0].readers) == {"3.0", "3.3"}
        and len(found) == 1
    )
    torch.testing.assert_close((found[0].subspace[0] @ a).abs(), torch.tensor(1.0), atol=0.05, rtol=0)
    assert found[0].share > 0.6 and "3.0" in found[0]._repr_html_()
    chain = trace_back(scores, "3.0", steps=("Q", "V"), top=2, z=6.0)
    assert set(zip(chain.src, chain.dst, chain["mode"], chain.step)) == {
        ("0.1", "3.0", "Q", 1),
        ("1.2", "3.0", "Q", 1),
        ("0.3", "1.2", "V", 2),
    }
    pairs, comps = strongest_pairs(scores["Q"], n=4, per_pair=3)
    assert (
        set(zip(pairs.src, pairs.dst)) == {("0.1", "3.0"), ("0.1", "3.3"), ("1.2", "3.0"), ("1.2", "3.3")}
        and len(comps) == 12
    )


def test_no_channels_and_bad_input():
    W, *_ = planted()
    scores = compose(W, "Q")
    assert find_channels(scores, W, z=1e6) == []
    with pytest.raises(HeadError, match="does not exist"):
        find_channels(scores, W, readers=["9.9"])
    with pytest.raises(HeadError, match="numbers of heads"):
        trace_back(compose(W), "3.0", top=(2, 2))
    with pytest.raises(HeadError, match="No scores for mode"):
        trace_back(scores, "3.0")
    with pytest.raises(HeadError, match="No scores for mode Q"):
        trace_back(compose(W, "VK"), "3.0")
    with pytest.raises(HeadError, match="at least one step"):
        trace_back(scores, "3.0", steps=())
    W.processing = "folded"
    with pytest.raises(ModelError, match="processing"):
        find_channels(scores, W)
