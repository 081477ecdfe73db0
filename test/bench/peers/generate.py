"""transformers' generate on a Llama of SmolLM2's shape and random weights: 32 answers of 48 tokens to prompts of 16, two threads.

Answers each number on its input, the rounds to run, with the tokens a second.
usage: generate.py float32|bfloat16
"""

import sys
import time

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

SEQUENCES, PROMPT, ANSWER = 32, 16, 48
transformers.logging.set_verbosity_error()
torch.set_num_threads(2)
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    intermediate_size=1536,
    tie_word_embeddings=True,
    pad_token_id=0,
)
model = LlamaForCausalLM(config).to(getattr(torch, sys.argv[1])).eval()
prompts = torch.randint(3, config.vocab_size, (SEQUENCES, PROMPT))


def work(rounds):
    started = time.perf_counter()
    for _ in range(rounds):
        model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            max_new_tokens=ANSWER,
            min_new_tokens=ANSWER,
        )
    return rounds * SEQUENCES * ANSWER / (time.perf_counter() - started)


work(1)
print("ready", flush=True)
for line in sys.stdin:
    print(work(int(line)), flush=True)
