"""TRL's PPO from a policy, against a reward model of ours: writes the policy's weights eight times on its way. The other side of frontier.ts.

The folder has policy/ and reward/ (Hugging Face's layout), head.json (the reward's head, its bias, the prior's tokens) and prompts.json (ids).

usage: trl_frontier.py <folder> <out> <answer tokens> <seed> <ppo settings as json>
"""

import json
import os
import sys
import warnings

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
warnings.filterwarnings("ignore")

import torch
import transformers
from datasets import Dataset
from safetensors.torch import save_file
from transformers import AutoTokenizer, LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer

folder, out, answer_tokens, seed, settings = sys.argv[1:]
ppo = json.loads(settings)
transformers.logging.set_verbosity_error()
torch.set_num_threads(2)
torch.manual_seed(int(seed))
policy = os.path.join(folder, "policy")
prompts = json.load(open(os.path.join(folder, "prompts.json")))
head = json.load(open(os.path.join(folder, "head.json")))
context = max(map(len, prompts))  # all of one length, so that the answer begins at one place in every batch

tokenizer = AutoTokenizer.from_pretrained(policy, padding_side="left")


class MeanSoFar(torch.nn.Module):
    """At each place of the answer, the mean over its tokens so far, drawn towards 0 as our reward model's is; the last is the score."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(head["weight"]))

    def forward(self, hidden):
        readings = hidden @ self.weight  # (B, T)
        readings = torch.where(torch.arange(readings.shape[1]) >= context, readings, 0.0)
        lengths = (torch.arange(readings.shape[1]) - context + 1).clamp(min=1) + head["prior"]
        return (readings.cumsum(1) / lengths + head["bias"])[..., None]  # (B, T, 1)


def classifier(path):
    model = LlamaForSequenceClassification.from_pretrained(path, num_labels=1, dtype=torch.float32)
    model.model = LlamaModel.from_pretrained(path, dtype=torch.float32)
    return model


reward = classifier(os.path.join(folder, "reward"))
reward.score = MeanSoFar()
value = classifier(policy)
torch.nn.init.zeros_(value.score.weight)

updates = ppo["episodes"] // ppo["rollout"]


class Written(TrainerCallback):
    def on_step_end(self, _, state, *__, **___):
        if state.global_step % (updates // 8) == 0:
            weights = trainer.accelerator.unwrap_model(trainer.model).policy.model.state_dict()
            at = os.path.join(out, f"{state.global_step}")
            os.makedirs(at, exist_ok=True)
            save_file({f"model.{name}": tensor.clone() for name, tensor in weights.items()}, os.path.join(at, "model.safetensors"))


trainer = PPOTrainer(
    args=PPOConfig(
        output_dir=out,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        logging_steps=10_000,
        seed=int(seed),
        per_device_train_batch_size=ppo["rollout"],
        num_mini_batches=ppo["rollout"] // ppo["minibatch"],
        num_ppo_epochs=ppo["epochs"],
        total_episodes=ppo["episodes"],
        response_length=int(answer_tokens),
        local_rollout_forward_batch_size=ppo["rollout"],
        num_sample_generations=0,
        stop_token_id=tokenizer.eos_token_id,
        missing_eos_penalty=1.0,
        temperature=ppo["temperature"],
        learning_rate=ppo["learningRate"],
        kl_coef=ppo["beta"],
        gamma=ppo["gamma"],
        lam=ppo["lambda"],
        cliprange=ppo["clip"],
        cliprange_value=ppo["valueClip"],
        vf_coef=ppo["valueWeight"],
        whiten_rewards=ppo["whitenRewards"],
        eval_strategy="no",
    ),
    processing_class=tokenizer,
    model=LlamaForCausalLM.from_pretrained(policy, dtype=torch.float32),
    ref_model=LlamaForCausalLM.from_pretrained(policy, dtype=torch.float32),
    reward_model=reward,
    value_model=value,
    train_dataset=Dataset.from_dict({"input_ids": [[tokenizer.pad_token_id] * (context - len(p)) + p for p in prompts]}),
    eval_dataset=Dataset.from_dict({"input_ids": [prompts[0]]}),
    callbacks=[Written()],
)
trainer.train()
