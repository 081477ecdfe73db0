"""What transformers answers greedily with the seed policy in float32, prompts by its chat template, written to greedy.json beside this file. An
answer is cut where the second token is within .02 nats of the first: which of the two comes is a matter of rounding.

    python3 -m venv /tmp/golden && /tmp/golden/bin/pip install torch==2.15.0 transformers==5.24.0 jinja2
    /tmp/golden/bin/python test/golden/greedy.py
"""
import json
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
folder = Path(__file__).parents[2] / "trainer/seed/policy"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
rows = []
for text in ASKED:
    chat = [{"role": "user", "content": text}]
    prompt = tokenizer(tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))["input_ids"]
    ids = torch.tensor([prompt])
    answer = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40)[0, len(prompt) :].tolist()
    with torch.no_grad():
        logprobs = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    best = logprobs[len(prompt) - 1 : -1].topk(2).values  # (T, 2)
    sure = [bool(first - second > 0.02) for first, second in best]
    answer = answer[: [*sure, False].index(False)]
    told = [round(float(logprobs[len(prompt) - 1 + i, token]), 5) for i, token in enumerate(answer)]
    rows.append({"text": text, "prompt": prompt, "ids": answer, "logprobs": told})
Path(__file__).with_suffix(".json").write_text(json.dumps(rows) + "\n")
