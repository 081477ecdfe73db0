"""PPO's numbers by others' conventions, written to ppo.json beside this file.

    python3.11 -m venv /tmp/golden && /tmp/golden/bin/pip install torch numpy
    /tmp/golden/bin/python test/golden/ppo.py

(a) openai/lm-human-preferences at cbfd210, lm_human_preferences/train_policy.py: compute_rewards (l. 149), the KL controller (l. 115), loss (l. 319);
    lm_human_preferences/utils/core.py: whiten (l. 336).
(b) TRL 1.12.0, trl/experimental/ppo/ppo_trainer.py (at f2cd577 the same but for the entropy's padding): l. 764–798 rewards, advantages and
    returns, which stand inline in train(); l. 820–865 the losses; l. 237–270 masked_whiten.
"""
import json
from pathlib import Path

import torch

torch.manual_seed(7)
torch.set_default_dtype(torch.float64)
B, T = 5, 7
GAMMA, LAMBDA, CLIP, CLIP_VALUE, BETA = 0.97, 0.9, 0.2, 0.25, 0.15


def given():
    logprobs = -torch.rand(B, T) * 4
    return {
        "logprobs": logprobs,
        "reference": logprobs + torch.randn(B, T) * 0.3,
        "values": torch.randn(B, T),
        "scores": torch.randn(B),
        "new_logprobs": logprobs + torch.randn(B, T) * 0.25,
        "vpred": torch.randn(B, T),
    }


def advantages_of(rewards, values):
    last, reversed_ = 0, []
    for t in reversed(range(T)):
        following = values[:, t + 1] if t < T - 1 else 0.0
        last = rewards[:, t] + GAMMA * following - values[:, t] + GAMMA * LAMBDA * last
        reversed_.append(last)
    advantages = torch.stack(reversed_[::-1], dim=1)
    return advantages, advantages + values


def losses(x, advantages, returns, mean, mean_values):
    """mean: over the tokens of the policy's loss; mean_values: of the values'"""
    near = torch.clamp(x["vpred"], x["values"] - CLIP_VALUE, x["values"] + CLIP_VALUE)
    plain_value, clipped_value = (x["vpred"] - returns) ** 2, (near - returns) ** 2
    ratio = torch.exp(x["new_logprobs"] - x["logprobs"])
    plain, clipped = -advantages * ratio, -advantages * torch.clamp(ratio, 1 - CLIP, 1 + CLIP)
    return {
        "policy": mean(torch.maximum(plain, clipped)),
        "clipfrac": mean((clipped > plain).double()),
        "value": 0.5 * mean_values(torch.maximum(plain_value, clipped_value)),
        "value_clipfrac": mean_values((clipped_value > plain_value).double()),
        "approxkl": 0.5 * ((x["new_logprobs"] - x["logprobs"]) ** 2).mean(),
    }


def openai():
    x = given()
    kl = x["logprobs"] - x["reference"]
    rewards = -BETA * kl
    rewards[:, -1] += x["scores"]

    def whiten(values, shift_mean=True):
        mean, var = values.mean(), values.var(unbiased=False)
        whitened = (values - mean) * torch.rsqrt(var + 1e-8)
        return whitened if shift_mean else whitened + mean

    whitened_rewards = whiten(rewards, shift_mean=False)
    advantages, returns = advantages_of(whitened_rewards, x["values"])
    whitened = whiten(advantages)
    error = max(-0.2, min(0.2, kl.sum(1).mean().item() / 6 - 1))
    return {
        **x, "rewards": rewards, "whitened_rewards": whitened_rewards, "advantages": advantages, "returns": returns, "whitened": whitened,
        "kl": kl.sum(1).mean(), "beta_after": BETA * (1 + error * B / 100), **losses(x, whitened, returns, torch.mean, torch.mean),
    }


def trl(lengths):
    """lengths: tokens of each answer, the EOS among them; T for one without padding"""
    x = given()
    sequence_lengths = torch.tensor(lengths) - 1
    place = torch.arange(T).repeat(B, 1)
    padding = place > sequence_lengths[:, None]
    padding_p1 = place > sequence_lengths[:, None] + 1
    logprobs = x["logprobs"].masked_fill(padding, 1.0)
    reference = x["reference"].masked_fill(padding, 1.0)
    values = x["values"].masked_fill(padding_p1, 0)
    x = {**x, "logprobs": logprobs, "reference": reference, "values": values}
    rewards = -BETA * (logprobs - reference)
    past = sequence_lengths + 1
    rewards[torch.arange(B), torch.where(past < T, past, sequence_lengths)] += x["scores"]
    advantages, returns = advantages_of(rewards, values)

    def masked_whiten(values, mask):
        count = mask.sum()
        mean = (values * mask).sum() / count
        var = (((values - mean) ** 2) * mask).sum() / count * count / (count - 1)
        return (values - mean) * torch.rsqrt(var + 1e-8)

    whitened = masked_whiten(advantages, ~padding).masked_fill(padding, 0)
    x["new_logprobs"] = x["new_logprobs"].masked_fill(padding, 1.0)
    x["vpred"] = x["vpred"].masked_fill(padding_p1, 0)
    over = lambda mask: lambda values: (values * mask).sum() / mask.sum()
    return {
        **x, "lengths": lengths, "rewards": rewards, "advantages": advantages, "returns": returns, "whitened": whitened,
        # with the advantages as they are, whitening being a difference of its own
        **losses(x, advantages.masked_fill(padding, 0), returns, over(~padding), over(~padding_p1)),
    }


def plain(value):
    return value.flatten().tolist() if isinstance(value, torch.Tensor) and value.dim() > 0 else float(value) if isinstance(value, torch.Tensor) else value


golden = {
    "shape": [B, T], "gamma": GAMMA, "lambda": LAMBDA, "clip": CLIP, "value_clip": CLIP_VALUE, "beta": BETA,
    **{name: {key: plain(value) for key, value in of.items()}
       for name, of in {"openai": openai(), "trl": trl([T] * B), "trl_padded": trl([7, 3, 5, 1, 6])}.items()},
}
Path(__file__).with_name("ppo.json").write_text(json.dumps(golden) + "\n")
