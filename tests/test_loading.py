"Files of a checkpoint: both readers take the same ones, or both refuse with the same reason; GGUF files are models"

import json
import shutil
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    CLIPVisionConfig,
    DeepseekV3Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
    T5Config,
    T5ForConditionalGeneration,
)

import tiny
import talking_heads.base.checkpoints as C
from talking_heads.base.core import *
from talking_heads.hooks import load_model, provenance
from talking_heads.svd import attention_weights

lfs = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 123456\n"
tokens = torch.tensor([[5, 9, 4, 30, 7, 11]])


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TALKING_HEADS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tiny.save("llama", tmp_path_factory.mktemp("llama") / "llama")


@pytest.fixture()
def folder(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "copy"))


def settings(folder, **changes):
    c = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in c.items() if v != "gone"}))


def weights(folder):
    return load_file(folder / "model.safetensors")


def rewrite(folder, w, name="model.safetensors"):
    save_file(w, folder / name, metadata={"format": "pt"})


def plain_logits(folder, ids=tokens, **kw):
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", **kw).eval()(ids).logits


def read_alike(name, want=None):
    "Both readers on one model: the same matrices, the logits of plain transformers, one hash"
    model, w = load_model(str(name), device="cpu"), attention_weights(str(name))
    for l in range(len(w)):
        for n in ("W_Q", "W_K", "W_V", "W_O"):
            assert torch.equal(getattr(w[l], n), getattr(model.blocks[l].attn, n).detach())
    assert model.checkpoint.sha256 == w.checkpoint.sha256
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), plain_logits(name) if want is None else want, atol=1e-4, rtol=1e-4)
    return model


def refused_alike(name, says, kind=TalkingHeadsError):
    "Both readers refuse, for one reason"
    for read in (load_model, attention_weights):
        with pytest.raises(kind, match=says):
            read(str(name))


def in_shards(folder, names=("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")):
    "The single file cut in two, with an index"
    w = weights(folder)
    parts = {n: dict(list(w.items())[i::2]) for i, n in enumerate(names)}
    for n, p in parts.items():
        rewrite(folder, p, n)
    index = dict(metadata={"total_size": 1}, weight_map={k: n for n, p in parts.items() for k in p})
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


# Which files


@pytest.mark.parametrize(
    "beside",
    [
        {"model.safetensors.index.json": '{"metadata":{},"weight_map":{"a":"model-00001-of-00006.safetensors"}}'},
        {"model.safetensors.index.json": "{"},
        {"consolidated.safetensors": "not even safetensors"},
        {"adapter_model.safetensors": "x"},
        {"model.fp16.safetensors": "x"},
        {"pytorch_model.bin": "x"},
        {"consolidated.safetensors": lfs, "pytorch_model.bin": lfs},
    ],
)
def test_a_single_file_comes_first(folder, beside):
    for n, text in beside.items():
        (folder / n).write_text(text)
    assert read_alike(folder).checkpoint.sha256 == sha256(folder / "model.safetensors")


def test_shards_are_those_of_the_index(folder):
    want = plain_logits(folder)
    in_shards(folder)
    (folder / "extra.safetensors").write_text("no shard of this model")
    c = read_alike(folder, want).checkpoint
    assert c.sha256 == sha256_many(sha256(folder / f"model-0000{i}-of-00002.safetensors") for i in (1, 2))


def test_weights_named_in_the_config(folder):
    "`transformers_weights` names the file, and another model.safetensors beside it is not read"
    rewrite(folder, weights(folder), "other.safetensors")
    rewrite(folder, {k: v * 2 for k, v in weights(folder).items()})
    settings(folder, transformers_weights="other.safetensors")
    assert read_alike(folder).checkpoint.sha256 == sha256(folder / "other.safetensors")
    settings(folder, transformers_weights="../copy/other.safetensors")
    refused_alike(folder, "not a file inside", CheckpointError)


@pytest.mark.parametrize("name", ["../copy/model.safetensors", "/etc/passwd", 3])
def test_an_index_stays_in_its_folder(folder, name):
    (folder / "model.safetensors").rename(folder / "m.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(dict(metadata={}, weight_map={"a": name})))
    refused_alike(folder, "not a file inside|is not a shard index", CheckpointError)


def test_shards_that_contradict(folder):
    w = weights(folder)
    in_shards(folder)
    second = load_file(folder / "model-00002-of-00002.safetensors")
    rewrite(folder, second | {next(n for n in w if n not in second): torch.ones(2)}, "model-00002-of-00002.safetensors")
    refused_alike(folder, "is both in model-00001.* and in model-00002", CheckpointError)


@pytest.mark.parametrize(
    "names", [["weights.safetensors"], ["a.safetensors", "b.safetensors"], ["model.fp16.safetensors"]]
)
def test_other_names_are_no_model(folder, names):
    for n in names:
        shutil.copy(folder / "model.safetensors", folder / n)
    (folder / "model.safetensors").unlink()
    refused_alike(folder, "nothing says which file is the model", CheckpointError)


@pytest.mark.parametrize("dtypes", [[torch.float64], [torch.bfloat16, torch.float16, torch.float32]])
def test_floats_of_any_width(folder, dtypes):
    rewrite(folder, {k: v.to(dtypes[i % len(dtypes)]) for i, (k, v) in enumerate(weights(folder).items())})
    read_alike(folder, plain_logits(folder, dtype=torch.float32))


# Codes are not weights

up, q = "model.layers.1.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj."


def coded(dtype, name=up):
    return lambda w: w.update({name: (w[name] * 50).round().to(dtype)})


def beside(**more):
    return lambda w: w.update({q + n.replace("__", "."): t for n, t in more.items()})


def packed(*suffixes):
    return lambda w: (w.pop(q + "weight"), w.update({q + s: torch.ones(6, 6, dtype=torch.int32) for s in suffixes}))


@pytest.mark.parametrize(
    "change,says",
    [
        (coded(torch.int8), "Layer 1.*up_proj.*int8.*Quantised"),
        (coded(torch.uint8), "uint8.*quantised"),
        (coded(torch.float8_e4m3fn), "float8_e4m3fn"),
        (coded(torch.float8_e5m2, q + "weight"), "q_proj.*float8_e5m2"),
        (beside(weight_scale=torch.ones(1)), "scales"),
        (beside(SCB=torch.ones(48)), "bitsandbytes, 8 bits"),
        (beside(weight__absmax=torch.ones(4)), "bitsandbytes, 4 bits"),
        (
            beside(**{"weight__quant_state__bitsandbytes__nf4": torch.ones(9, dtype=torch.uint8)}),
            "bitsandbytes, 4 bits",
        ),
        (packed("qweight", "qzeros", "scales"), "AWQ or GPTQ"),
        (packed("qweight", "qzeros", "scales", "g_idx"), "GPTQ"),
        (packed("weight_packed", "weight_scale", "weight_shape"), "compressed-tensors"),
        (packed("W_q", "scale", "zero"), "HQQ"),
        (
            lambda w: w.update(
                {"model.layers.0.mlp.experts.down_proj_blocks": torch.ones(2, 3, 4, 16, dtype=torch.uint8)}
            ),
            "MXFP4",
        ),
    ],
)
def test_codes_are_refused(folder, change, says):
    w = weights(folder)
    change(w)
    rewrite(folder, w)
    refused_alike(folder, says, CheckpointError)


@pytest.mark.parametrize(
    "said,says",
    [
        (dict(quantization_config={"quant_method": "awq", "bits": 4}), r"\(awq\)"),
        (dict(quantization_config={"quant_method": "nonesuch"}), "nonesuch"),
        (dict(quantization_config={}), "quantization_config"),
        (dict(quantization={"group_size": 64, "bits": 4}), "quantised"),
        (dict(compression_config={"format": "int-quantized"}), "int-quantized"),
    ],
)
def test_a_config_that_speaks_of_codes(folder, said, says):
    settings(folder, **said)
    refused_alike(folder, says, CheckpointError)


def test_what_only_looks_like_codes(folder):
    "A mask stored with the attention, positions, and a null in the config are no quantisation"
    w = weights(folder)
    rewrite(
        folder,
        w
        | {
            "model.layers.0.attention.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool),
            "model.position_ids": torch.arange(8)[None],
        },
    )
    settings(folder, quantization_config=None)
    read_alike(folder)


# Small files


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.model",
    ],
)
def test_a_pointer_in_place_of_a_file(folder, name):
    (folder / name).write_text(lfs)
    refused_alike(folder, f"{name} is a Git LFS pointer.*git lfs pull", CheckpointError)


def test_a_pointer_in_place_of_an_index_or_a_shard(folder):
    in_shards(folder)
    for n in ("model-00002-of-00002.safetensors", "model.safetensors.index.json"):
        (folder / n).write_text(lfs)
        refused_alike(folder, f"{n} is a Git LFS pointer.*git lfs pull", CheckpointError)


@pytest.mark.parametrize(
    "text,says",
    [
        ("[1]", "holds a list"),
        ("null", "holds a NoneType"),
        ('"llama"', "holds a str"),
        ("\xff", "not valid JSON"),
        ("[" * 100000, "not valid JSON"),
    ],
)
def test_a_config_that_is_none(folder, text, says):
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    refused_alike(folder, says, CheckpointError)


@pytest.mark.parametrize(
    "change",
    [
        dict(hidden_size="48"),
        dict(num_attention_heads=0),
        dict(num_hidden_layers=3.0),
        dict(head_dim=True),
        dict(num_key_value_heads={}),
        dict(architectures="LlamaForCausalLM"),
        dict(architectures=[1]),
        dict(model_type=["llama"]),
        dict(text_config=[]),
    ],
)
def test_settings_of_the_wrong_type(folder, change):
    settings(folder, **change)
    refused_alike(folder, next(iter(change)), CheckpointError)


def test_other_damage_to_a_config_is_our_error_too(folder):
    settings(folder, rope_parameters="none of it")
    with pytest.raises(ModelError):
        load_model(str(folder))


@pytest.mark.parametrize("f", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_file_that_may_not_be_read(folder, f, monkeypatch):
    import builtins, io

    plain = builtins.open

    def guarded(p, *a, **k):
        if Path(str(p)).name == f:
            raise PermissionError(13, "Permission denied", str(p))
        return plain(p, *a, **k)

    monkeypatch.setattr(builtins, "open", guarded)
    monkeypatch.setattr(io, "open", guarded)
    refused_alike(folder, "cannot be read.*Permission denied", CheckpointError)


# Tokenizers


def without(folder, *patterns):
    for p in patterns:
        [f.unlink() for f in folder.glob(p)]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "gemma3"])
def test_no_tokenizer(kind, tmp_path):
    "For three of these families transformers makes an empty tokenizer without a word"
    folder = tiny.save(kind, tmp_path / kind)
    without(folder, "tokenizer*", "vocab*", "merges*")
    with pytest.raises(ModelError, match="has no tokenizer"):
        load_model(str(folder))
    attention_weights(str(folder))  # work on weights goes on


@pytest.mark.parametrize(
    "text", ["{", "{}", "[]", '{"version":"1.0","model":{"type":"WordLevel","vocab":{},"unk_token":"a"}}']
)
def test_a_broken_tokenizer(folder, text):
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(ModelError, match="The tokenizer of"):
        load_model(str(folder))


def test_tokens_beyond_the_embedding(folder):
    tok = tiny.tokenizer()
    tok.add_tokens(["new-word"])
    tok.save_pretrained(folder)
    with pytest.raises(ModelError, match="1 tokens that the embedding has no row for.*new-word"):
        load_model(str(folder))


def test_a_padding_token_beyond_the_embedding(folder):
    tok = tiny.tokenizer()
    tok.add_special_tokens({"pad_token": "[PAD]"})
    tok.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"\[PAD\]"):
        load_model(str(folder))


def test_a_special_token_that_text_never_gives_is_let_be(folder):
    tok = tiny.tokenizer()
    tok.add_special_tokens({"additional_special_tokens": ["<image_soft_token>"]})
    tok.save_pretrained(folder)
    read_alike(folder)


# Kinds of model


def save(cls, config, folder, seed=0):
    torch.manual_seed(seed)
    model = cls(config).eval()
    with torch.no_grad():
        for n, p in model.named_parameters():
            p.copy_(torch.randn_like(p) * 0.15 + (1.0 if "norm" in n and n.endswith("weight") else 0.0))
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return model


sizes = dict(
    vocab_size=len(tiny.tokenizer()),
    hidden_size=48,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=128,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=2,
)


def test_neox_without_attention_biases(tmp_path):
    save(GPTNeoXForCausalLM, GPTNeoXConfig(**sizes, attention_bias=False, tie_word_embeddings=False), tmp_path)
    model = read_alike(tmp_path)
    assert not any(n.endswith("query_key_value.bias") for n in weights(tmp_path)) and model.blocks[
        0
    ].attn.W_Q.shape == (4, 48, 12)


def eye(cls):
    return cls(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )


def gemma3():
    text = Gemma3TextConfig(**sizes, num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=16, sliding_window=64)
    v = sizes["vocab_size"]
    return Gemma3Config(
        text_config=text.to_dict(),
        vision_config=eye(SiglipVisionConfig).to_dict(),
        mm_tokens_per_image=4,
        image_token_index=v - 1,
        boi_token_index=v - 2,
        eoi_token_index=v - 3,
    )


def llava(tie):
    return LlavaConfig(
        text_config=LlamaConfig(**sizes, num_key_value_heads=2, tie_word_embeddings=tie),
        tie_word_embeddings=tie,
        vision_config=eye(CLIPVisionConfig),
        image_token_index=sizes["vocab_size"] - 1,
    )


@pytest.mark.parametrize(
    "cls,config",
    [
        (Gemma3ForConditionalGeneration, gemma3()),
        (LlavaForConditionalGeneration, llava(False)),
        (LlavaForConditionalGeneration, llava(True)),
    ],
    ids=["gemma3", "llava", "llava tied"],
)
def test_the_language_part_of_a_model_that_sees(cls, config, tmp_path):
    whole = save(cls, config, tmp_path)
    with torch.no_grad():
        want = whole(input_ids=tokens).logits
    model = read_alike(tmp_path, want)
    assert not any("vision" in n for n, _ in model.original_model.named_parameters())


def test_latent_attention_is_refused_by_name(tmp_path):
    config = DeepseekV3Config(
        **sizes, num_key_value_heads=4, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=12
    )
    config.save_pretrained(tmp_path)
    rewrite(tmp_path, {"a": torch.ones(2, 2)})
    refused_alike(
        tmp_path, "deepseek_v3 has multi-head latent attention: queries and keys of 16 .*values of 12", ModelError
    )


def test_models_that_are_not_causal(folder, tmp_path):
    d = tmp_path / "t5"
    T5ForConditionalGeneration(
        T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    ).save_pretrained(d)
    with pytest.raises(ModelError, match="T5ForConditionalGeneration, an encoder with a decoder"):
        load_model(str(d))
    settings(folder, architectures=["LlamaForSequenceClassification"])
    with pytest.raises(ModelError, match="LlamaForSequenceClassification, which does not predict"):
        load_model(str(folder))


def test_a_model_that_looks_ahead(tmp_path):
    "BERT has a head for language modelling too; without a decoder's mask it reads what it should predict"
    save(BertLMHeadModel, BertConfig(**sizes), tmp_path)
    settings(tmp_path, architectures=None)
    with pytest.raises(ModelError, match="looks ahead"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3", "phi3"])
@pytest.mark.parametrize("value", [None, "gone", []], ids=["null", "missing", "empty"])
def test_architectures_may_be_missing(kind, value, tmp_path):
    folder = tiny.save(kind, tmp_path / kind)
    settings(folder, architectures=value)
    read_alike(folder)


def test_code_of_a_repository_is_not_run(folder):
    for n in ("configuration_x", "modeling_x"):
        (folder / f"{n}.py").write_text("raise SystemExit('code was run')")
    settings(
        folder, model_type="x", auto_map={"AutoConfig": "configuration_x.X", "AutoModelForCausalLM": "modeling_x.X"}
    )
    with pytest.raises(ModelError, match="which is not run"):
        load_model(str(folder))
    settings(folder, model_type="llama")
    read_alike(folder)


def test_a_missing_model_type(folder):
    settings(folder, model_type="gone")
    refused_alike(folder, "model_type None", ModelError)


@pytest.mark.parametrize(
    "name",
    ["model.norm.weight", "lm_head.weight", "model.layers.1.input_layernorm.weight", "model.embed_tokens.weight"],
)
def test_infinities_are_named(folder, name):
    w = weights(folder)
    w[name].view(-1)[3] = float("inf")
    rewrite(folder, w)
    with pytest.raises(CheckpointError, match=f"NaN or infinite values in .*{name}"):
        load_model(str(folder))


def test_norms_that_are_not_finite_are_refused_from_weights_too(folder):
    w = weights(folder)
    w["model.layers.1.input_layernorm.weight"][3] = float("nan")
    rewrite(folder, w)
    with pytest.raises(CheckpointError, match="Layer 1: .*input_layernorm.* NaN"):
        attention_weights(str(folder), "folded")[1]


def test_numbers_too_large_for_the_dtype(folder):
    w = weights(folder)
    w[up].view(-1)[0] = 1e6
    rewrite(folder, w)
    with pytest.raises(CheckpointError, match="up_proj.weight, read as float16"):
        load_model(str(folder), device="cpu", dtype="float16")


def test_what_the_bridge_does_not_support_is_said(folder, monkeypatch):
    from transformer_lens.model_bridge import TransformerBridge

    def boot(*a, **k):
        raise AssertionError

    monkeypatch.setattr(TransformerBridge, "boot_transformers", boot)
    with pytest.raises(ModelError, match="TransformerLens does not support .*LlamaForCausalLM.*AssertionError"):
        load_model(str(folder))


# Adapters and single files


@pytest.mark.parametrize(
    "inside", [["adapter_config.json", "adapter_model.safetensors"], ["adapter_model.safetensors", "config.json"]]
)
def test_a_folder_with_an_adapter_alone(made, tmp_path, inside):
    files = {
        "adapter_config.json": '{"base_model_name_or_path":"owner/base","peft_type":"LORA"}',
        "config.json": (made / "config.json").read_text(),
    }
    for n in inside:
        (tmp_path / n).write_text(files.get(n, "x"))
    refused_alike(
        tmp_path,
        "holds an adapter, not a model. Load its base model, " + ("owner/base" if inside[0] in files else ""),
        ModelError,
    )


def test_a_model_with_an_adapter_beside_it(folder):
    "transformers would run the two together where peft is installed"
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path":"owner/base","peft_type":"LORA"}')
    refused_alike(folder, "a whole model and an adapter beside it", ModelError)


@pytest.mark.parametrize(
    "name,says",
    [("model.safetensors", "give its folder"), ("config.json", "give its folder"), ("pytorch_model.bin", "pickle")],
)
def test_a_single_file(folder, name, says):
    (folder / "pytorch_model.bin").write_bytes(b"x")
    refused_alike(folder / name, says, ModelError)


@pytest.mark.parametrize(
    "name",
    ["nowhere/x.gguf", "x.gguf", "a/b/c", "~nobody-of-that-name/x", "n" * 5000, "owner/model.safetensors", "a\0b"],
)
def test_paths_to_nothing_never_reach_for_the_network(name, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("asked the hub"))
    refused_alike(name, "not a folder or a file|cannot be looked up|neither a model", ModelError)


def test_a_revision_of_what_has_none(folder):
    for name in (str(folder), "smollm2", "toy"):
        with pytest.raises(ModelError, match="no revisions"):
            C.find_checkpoint(name, "main")


def test_a_snapshot_follows_the_same_rule(folder, tmp_path, monkeypatch):
    "Of several formats in the cache the same is chosen; a snapshot without its weights is fetched to its end"
    import huggingface_hub

    (folder / "model.safetensors.index.json").write_text('{"metadata":{},"weight_map":{"a":"gone.safetensors"}}')
    (folder / "consolidated.safetensors").write_text("x")
    asked = []

    def snapshot(name, revision=None, local_files_only=False, **k):
        asked.append(local_files_only)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert C.find_checkpoint("owner/name").sha256 == sha256(folder / "model.safetensors") and asked == [True]
    (folder / "model.safetensors").unlink()
    refused_alike("owner/name", "lacks 1 of 1 shards", CheckpointError)
    assert asked == [True] + [True, False] * 2


# GGUF files


def permuted(w, heads):
    return w.view(heads, 2, -1, w.shape[1]).transpose(1, 2).reshape(w.shape)  # as llama.cpp orders the rows of q and k


names = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def ggml_name(n):
    "The name that llama.cpp gives to a tensor of a Llama"
    n = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }.get(n, n)
    n = n.replace("model.layers.", "blk.")
    for a, b in names.items():
        n = n.replace(a, b)
    return n


@pytest.fixture(scope="module")
def llama():
    "A random Llama whose sizes fit blocks of 32, and a byte-level tokenizer for it"
    tok = tiny.byte_level()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(**sizes | dict(vocab_size=len(tok), hidden_size=64), num_key_value_heads=2)
    ).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.15)
    return model, tok


def write_gguf(path, llama, kind="F32", extra=None, values=(), arch="llama"):
    "A GGUF file of that Llama, its matrices as `kind`"
    import gguf

    model, tok = llama
    w, c = gguf.GGUFWriter(path, arch), model.config
    w.add_block_count(c.num_hidden_layers)
    w.add_context_length(128)
    w.add_embedding_length(64)
    w.add_feed_forward_length(64)
    w.add_head_count(4)
    w.add_head_count_kv(2)
    w.add_rope_freq_base(5000.0)
    w.add_layer_norm_rms_eps(1e-6)
    w.add_rope_dimension_count(16)
    vocabulary = sorted(tok.get_vocab(), key=tok.get_vocab().get)
    w.add_tokenizer_model("gpt2")
    w.add_token_list(vocabulary)
    w.add_token_types([1] * len(vocabulary))
    w.add_vocab_size(len(vocabulary))
    w.add_token_merges([" ".join(m) for m in json.loads(tok.backend_tokenizer.to_str())["model"]["merges"]])
    w.add_bos_token_id(0)
    w.add_eos_token_id(0)
    w.add_add_bos_token(False)
    for key, value in values:
        (w.add_string if isinstance(value, str) else w.add_float32)(key, value)
    q = gguf.GGMLQuantizationType[kind]
    for n, x in model.state_dict().items():
        if "q_proj" in n or "k_proj" in n:
            x = permuted(x, 4 if "q_proj" in n else 2)
        a = x.numpy()
        if x.ndim == 2 and kind != "F32":
            w.add_tensor(ggml_name(n), gguf.quantize(a, q), raw_dtype=q)
        else:
            w.add_tensor(ggml_name(n), a)
    for n, x in (extra or {}).items():
        w.add_tensor(n, x.numpy())
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


def test_a_gguf_file_is_a_model(llama, tmp_path, monkeypatch):
    "Its logits are those of the model it was made from, it is converted once, and a changed file is converted anew"
    f = write_gguf(tmp_path / "tiny.gguf", llama)
    llama[0].config.rope_parameters["rope_theta"] = 5000.0
    twin = AutoModelForCausalLM.from_config(llama[0].config).eval()
    twin.load_state_dict(llama[0].state_dict())
    with torch.no_grad():
        want = twin(tokens).logits
    (tmp_path / "adapter_config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    c = read_alike("tiny.gguf", want).checkpoint
    assert (c.name, c.source, c.revision, c.gguf) == ("tiny.gguf", "local", None, sha256(f))
    assert c.sha256 == sha256(c.path / "model.safetensors")
    monkeypatch.setattr(C, "_convert_gguf", lambda *a: pytest.fail("converted again"))
    model = load_model(str(f))
    assert model.checkpoint == c and provenance(model, 0)["gguf_sha256"] == c.gguf
    assert not model.cfg.default_prepend_bos
    assert AutoTokenizer.from_pretrained(c.path)("Mary went").input_ids == llama[1]("Mary went").input_ids
    monkeypatch.undo()
    monkeypatch.setenv("TALKING_HEADS_CACHE", str(tmp_path / "cache"))
    with torch.no_grad():
        llama[0].lm_head.weight.view(-1)[0] += 1
    write_gguf(f, llama)
    d = C.find_checkpoint(f)
    assert (
        d.path != c.path
        and d.gguf == sha256(f)
        and not [p for p in (tmp_path / "cache").iterdir() if ".part-" in p.name]
    )


def test_quantised_gguf_as_transformers_reads_it(llama, tmp_path):
    f = write_gguf(tmp_path / "tiny.gguf", llama, "Q8_0")
    read_alike(f, plain_logits(tmp_path, gguf_file=f.name, dtype=torch.float32))


@pytest.mark.parametrize(
    "wrong,says",
    [
        (dict(extra={"rope_freqs.weight": torch.ones(8)}), "passes over rope_freqs.weight"),
        (dict(extra={"blk.0.attn_q.bias": torch.ones(64)}), "holds .* numbers, of which transformers makes a model of"),
        (
            dict(values=[("llama.rope.scaling.type", "linear"), ("llama.rope.scaling.factor", 4.0)]),
            "rope.scaling.type to 'linear'",
        ),
        (dict(values=[("llama.attention.scale", 0.5)]), "attention.scale to 0.5"),
        (dict(arch="rwkv6"), "architecture 'rwkv6'"),
        (dict(arch="t5"), "architecture 't5'"),
    ],
)
def test_gguf_that_transformers_would_misread(llama, tmp_path, wrong, says):
    with pytest.raises(ModelError, match=says):
        C.find_checkpoint(write_gguf(tmp_path / "tiny.gguf", llama, **wrong))
    assert not [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]


@pytest.mark.parametrize(
    "change,says",
    [
        (lambda f: f.write_bytes(f.read_bytes()[:-1000]), "promises .* truncated"),
        (lambda f: f.write_bytes(f.read_bytes()[:200]), "is truncated"),
        (lambda f: f.write_bytes(b""), "does not start like a GGUF"),
        (lambda f: f.write_text("<html>"), "does not start like a GGUF"),
        (lambda f: f.write_text(lfs), "git lfs pull"),
        (lambda f: f.write_bytes(b"GGUF" + (1).to_bytes(4, "little") + f.read_bytes()[8:]), "version 1"),
        (lambda f: f.write_bytes(b"GGUF" + (3).to_bytes(4, "big") + f.read_bytes()[8:]), "big-endian"),
    ],
)
def test_broken_gguf(llama, tmp_path, change, says):
    f = write_gguf(tmp_path / "tiny.gguf", llama)
    change(f)
    refused_alike(f, says, CheckpointError)


def test_part_of_a_gguf(llama, tmp_path):
    refused_alike(write_gguf(tmp_path / "tiny-00001-of-00003.gguf", llama), "one part of a model", ModelError)


def test_a_quantisation_that_nobody_undoes(llama, tmp_path, monkeypatch):
    import gguf

    def no(*a):
        raise NotImplementedError

    monkeypatch.setattr(gguf, "dequantize", no)
    refused_alike(write_gguf(tmp_path / "tiny.gguf", llama, "Q4_0"), "holds tensors as F32, Q4_0", ModelError)


def test_a_folder_with_gguf_alone(llama, folder):
    (folder / "model.safetensors").unlink()
    write_gguf(folder / "tiny.gguf", llama)
    refused_alike(folder, "Give the file itself as the model: .*tiny.gguf", CheckpointError)
