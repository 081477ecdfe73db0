"""Logits of Hugging Face's Qwen 2 and Qwen 3 on weights that a formula gives, written to qwen.json beside this file.

    python3 -m venv /tmp/golden && /tmp/golden/bin/pip install torch==2.15.0 transformers==5.24.0
    /tmp/golden/bin/python test/golden/qwen.py
"""
import json
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from formula import numbers

out = []
for name, Config, Model, over in [
    ("Qwen 2: biases, grouped, tied", Qwen2Config, Qwen2ForCausalLM, {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 256, "tie_word_embeddings": True}),
    ("Qwen 3: norms of heads, a head of its own", Qwen3Config, Qwen3ForCausalLM, {"num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 192, "head_dim": 64, "tie_word_embeddings": False}),
]:
    shape = {
        "vocab_size": 61, "intermediate_size": 160, "num_hidden_layers": 2, "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0, **over,
    }
    model = Model(Config(**shape, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0})).float().eval()
    tensors = {}
    with torch.no_grad():
        for hf, value in model.named_parameters():
            if hf == "lm_head.weight" and shape["tie_word_embeddings"]:
                continue
            seed = sum(hf.encode()) + len(tensors)
            tensors[hf] = {"shape": list(value.shape), "seed": seed}
            data = numbers(seed, value.numel()).reshape(value.shape)
            value.copy_(torch.from_numpy(data / 8 if data.ndim == 2 else data / 4 + 1))
        ids = [int(i) for i in (np.arange(40) * 17 + 5) % 61]
        logits = model(torch.tensor([ids])).logits[0].numpy()
    config = {"architectures": [Model.__name__], "model_type": Config.model_type, "head_dim": 64, "rope_theta": 10_000.0, **shape}
    rows = {str(i): [round(float(v), 6) for v in logits[i]] for i in (0, 1, 7, 39)}
    out.append({"name": name, "config": config, "tensors": tensors, "ids": ids, "logits": rows})
Path(__file__).with_suffix(".json").write_text(json.dumps(out) + "\n")
