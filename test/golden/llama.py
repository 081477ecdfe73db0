"""Logits of Hugging Face's Llama on weights that a formula gives, written to llama.json beside this file.

    python3.11 -m venv /tmp/golden && /tmp/golden/bin/pip install transformers==4.46.3 "jax<0.5" "jaxlib<0.5" "flax<0.11"
    /tmp/golden/bin/python test/golden/llama.py
"""
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from transformers import FlaxLlamaForCausalLM, LlamaConfig

from formula import numbers

jax.config.update("jax_default_matmul_precision", "highest")

out = []
for name, over in {
    "grouped, tied": {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 256, "tie_word_embeddings": True},
    "one key-value head, a head of its own": {"num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 192, "tie_word_embeddings": False},
}.items():
    shape = {
        "vocab_size": 61, "intermediate_size": 160, "num_hidden_layers": 2, "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5, "rope_theta": 10_000.0, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0, **over,
    }
    model = FlaxLlamaForCausalLM(LlamaConfig(**shape), seed=0)
    flat = {}

    def fill(tree, path=()):
        return {k: fill(v, (*path, k)) if isinstance(v, dict) else leaf(v, (*path, k)) for k, v in tree.items()}

    def leaf(value, path):
        hf = ".".join("weight" if p in ("kernel", "embedding") else p for p in path)
        flat[hf] = value.shape[::-1] if path[-1] == "kernel" else value.shape
        seed = sum(hf.encode()) + len(flat)
        order[hf] = seed
        data = numbers(seed, int(np.prod(value.shape))).reshape(flat[hf])
        scale = 1 / 8 if data.ndim == 2 else 1 / 4
        data = data * np.float32(scale) + np.float32(0 if data.ndim == 2 else 1)
        return jnp.asarray(data.T if path[-1] == "kernel" else data)

    order = {}
    params = fill(model.params)
    if shape["tie_word_embeddings"]:  # the Flax model has a head all the same
        del flat["lm_head.weight"]
        params["lm_head"]["kernel"] = params["model"]["embed_tokens"]["embedding"].T
    ids = [int(i) for i in (np.arange(40) * 17 + 5) % 61]
    logits = np.asarray(model(jnp.asarray([ids]), params=params).logits)[0]
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "head_dim": 64, **shape}
    tensors = {k: {"shape": list(map(int, flat[k])), "seed": order[k]} for k in flat}
    rows = {str(i): [round(float(v), 6) for v in logits[i]] for i in (0, 1, 7, 39)}
    out.append({"name": name, "config": config, "tensors": tensors, "ids": ids, "logits": rows})
Path(__file__).with_suffix(".json").write_text(json.dumps(out) + "\n")
