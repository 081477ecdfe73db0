"""A training step of a Llama of 5.8 million weights in PyTorch: forward, backward, clipping, AdamW. The other side of torch.ts.

Reads the number of steps to run from each line of its input, and answers with the tokens a second. Of products alone, with products a second.
usage: step.py eager|compile|product float32|bfloat16
"""

import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

V, D, L, H, T, B, FF = 4096, 256, 6, 4, 128, 16, 688
PRODUCT = 4096
HD = D // H


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(D))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight


def rotated(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.before, self.between = Norm(), Norm()
        self.qkv = nn.Linear(D, 3 * D, bias=False)
        self.out = nn.Linear(D, D, bias=False)
        self.gate_up = nn.Linear(D, 2 * FF, bias=False)
        self.down = nn.Linear(FF, D, bias=False)

    def forward(self, x, cos, sin):
        q, k, v = self.qkv(self.before(x)).view(B, T, 3, H, HD).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(rotated(q, cos, sin), rotated(k, cos, sin), v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(B, T, D))
        gate, up = self.gate_up(self.between(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(V, D)
        nn.init.normal_(self.embedding.weight, 0, 0.02)
        self.blocks = nn.ModuleList(Block() for _ in range(L))
        self.norm = Norm()
        angles = torch.outer(torch.arange(T), 10_000.0 ** (-torch.arange(0, HD, 2) / HD)).repeat(1, 2)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, tokens, targets):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits.view(-1, V).float(), targets.view(-1))


mode, dtype = sys.argv[1:]
torch.manual_seed(0)
torch.set_num_threads(2)
model = Model()
optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
forward = torch.compile(model) if mode == "compile" else model
tokens, targets = torch.randint(V, (2, B, T))
a, b = torch.randn(2, PRODUCT, PRODUCT, dtype=getattr(torch, dtype)) if mode == "product" else (None, None)


def train():
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        loss = forward(tokens, targets)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def multiply():
    a @ b


step, work = (multiply, 1) if mode == "product" else (train, B * T)
for _ in range(3):
    step()
print("ready", flush=True)
for line in sys.stdin:
    started = time.perf_counter()
    for _ in range(int(line)):
        step()
    print(int(line) * work / (time.perf_counter() - started), flush=True)
