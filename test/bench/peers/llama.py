"""llama.cpp on a .gguf file, by llama-cpp-python. The other side of decoder.ts.

Answers each number on its input with the tokens a second of so much work:
  decode    that many tokens, one after another, one thread
  prefill   a prompt of 512 tokens, that many times, one thread
  rollouts  that many rounds of 32 answers of 48 tokens to prompts of 16, side by side, two threads, sampled at temperature 1
usage: llama.py decode|prefill|rollouts model.gguf
       llama.py quantise model.gguf Q4_0|Q4_1 out.gguf
       llama.py perplexity model.gguf < a list of token ids as JSON on each line
"""

import ctypes
import json
import math
import sys
import time

import llama_cpp as llama
import numpy as np

mode, path = sys.argv[1:3]
quiet = llama.llama_log_callback(lambda *_: None)  # kept: llama.cpp calls it as long as it runs
llama.llama_log_set(quiet, None)
llama.llama_backend_init()

if mode == "quantise":
    params = llama.llama_model_quantize_default_params()
    params.ftype = {"Q4_0": llama.LLAMA_FTYPE_MOSTLY_Q4_0, "Q4_1": llama.LLAMA_FTYPE_MOSTLY_Q4_1}[sys.argv[3]]
    params.allow_requantize = True
    status = llama.llama_model_quantize(path.encode(), sys.argv[4].encode(), ctypes.byref(params))
    sys.exit(0 if status == 0 else "llama.cpp could not quantise this file")

SEQUENCES, PROMPT, ANSWER, PREFILL = 32, 16, 48, 512
parallel = SEQUENCES if mode == "rollouts" else 1
model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
params = llama.llama_context_default_params()
params.n_ctx = SEQUENCES * (PROMPT + ANSWER) if mode == "rollouts" else PREFILL
params.n_batch = params.n_ubatch = PREFILL
params.n_seq_max = parallel
params.n_threads = params.n_threads_batch = 2 if mode == "rollouts" else 1
context = llama.llama_init_from_model(model, params)
vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
batch = llama.llama_batch_init(PREFILL, 0, 1)


def decode(tokens, positions, sequences, wanted):
    """One call: tokens, each at its position of its sequence; logits of those that are wanted."""
    batch.n_tokens = len(tokens)
    for i, (token, position, sequence) in enumerate(zip(tokens, positions, sequences)):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted(i)
        batch.seq_id[i][0] = sequence
    if llama.llama_decode(context, batch) != 0:
        sys.exit("llama.cpp refused a batch")


def clear():
    llama.llama_memory_clear(llama.llama_get_memory(context), True)


def one_by_one(amount):
    clear()
    decode([100], [0], [0], lambda _: 1)
    started = time.perf_counter()
    for at in range(1, amount + 1):
        decode([100 + at], [at], [0], lambda _: 1)
    return amount / (time.perf_counter() - started)


def prompts(amount):
    started = time.perf_counter()
    for _ in range(amount):
        clear()
        decode(range(100, 100 + PREFILL), range(PREFILL), [0] * PREFILL, lambda i: i == PREFILL - 1)
    return amount * PREFILL / (time.perf_counter() - started)


def rollouts(amount):
    sampler = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
    llama.llama_sampler_chain_add(sampler, llama.llama_sampler_init_temp(1.0))
    llama.llama_sampler_chain_add(sampler, llama.llama_sampler_init_dist(1))
    started = time.perf_counter()
    for _ in range(amount):
        clear()
        rows = range(SEQUENCES * PROMPT)
        tokens = [100 + 7 * i for i in rows]
        decode(tokens, [i % PROMPT for i in rows], [i // PROMPT for i in rows], lambda i: i % PROMPT == PROMPT - 1)
        ends = [(s + 1) * PROMPT - 1 for s in range(SEQUENCES)]
        for at in range(PROMPT, PROMPT + ANSWER):
            drawn = [llama.llama_sampler_sample(sampler, context, end) for end in ends]
            if at < PROMPT + ANSWER - 1:
                decode(drawn, [at] * SEQUENCES, range(SEQUENCES), lambda _: 1)
            ends = range(SEQUENCES)
    return amount * SEQUENCES * ANSWER / (time.perf_counter() - started)


def negative_log_likelihood(ids):
    """Of every token but the first, in nats, and how many they are."""
    clear()
    decode(ids, range(len(ids)), [0] * len(ids), lambda _: 1)
    total = 0.0
    for i, following in enumerate(ids[1:]):
        logits = np.ctypeslib.as_array(llama.llama_get_logits_ith(context, i), (vocabulary,)).astype(np.float64)
        top = logits.max()
        total += top + math.log(np.exp(logits - top).sum()) - logits[following]
    return total, len(ids) - 1


if mode == "perplexity":
    totals = [negative_log_likelihood(json.loads(line)) for line in sys.stdin]
    print(math.exp(sum(total for total, _ in totals) / sum(count for _, count in totals)))
    sys.exit()

work = {"decode": one_by_one, "prefill": prompts, "rollouts": rollouts}[mode]
work(2)
print("ready", flush=True)
for line in sys.stdin:
    print(work(int(line)), flush=True)
