"""A stage of TRL on a Llama of 6.84 or 135 million weights with random tokens. The other side of trl.ts.

Trains only while it is asked to: reads the number of steps from each line of its input, and answers with the steps a second.
usage: trl_stage.py sft|sft-lora|reward|ppo float32|bfloat16 small|large
"""

import os
import sys
import time
import warnings

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
warnings.filterwarnings("ignore")

import torch
import transformers
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    TrainerCallback,
)

stage, dtype, size = sys.argv[1:]
answers, sys.stdout = sys.stdout, open(os.devnull, "w")
transformers.logging.set_verbosity_error()
torch.set_num_threads(2)
torch.manual_seed(0)

SIZES = {
    "small": dict(
        vocab_size=4096,
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=688,
        tie_word_embeddings=False,
    ),
    "large": dict(
        vocab_size=49152,
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        tie_word_embeddings=True,
    ),
}
V = SIZES[size]["vocab_size"]
WARM_UP = 2 if size == "small" else 1
MANY = 100_000
shape = LlamaConfig(
    **SIZES[size],
    max_position_embeddings=1024,
    rms_norm_eps=1e-5,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    attn_implementation="sdpa",
)


def classifier():
    return LlamaForSequenceClassification(LlamaConfig(**{**shape.to_dict(), "num_labels": 1})).float()


def tokenizer(side):
    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<unk>": 3, **{f"w{i}": i for i in range(4, V)}}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, padding_side=side, **special)


def rows(count, length):
    return torch.randint(4, V, (count, length)).tolist()


class InTurn(TrainerCallback):
    def __init__(self):
        self.steps = self.left = WARM_UP
        self.warm = False

    def on_step_end(self, *_, **__):
        self.left -= 1
        if self.left > 0:
            return
        print(self.steps / (time.perf_counter() - self.started) if self.warm else "ready", file=answers, flush=True)
        self.warm = True
        line = sys.stdin.readline()
        if not line:
            os._exit(0)
        self.steps = self.left = int(line)
        self.started = time.perf_counter()


common = dict(
    output_dir=os.path.join(os.environ.get("TMPDIR", "/tmp"), "plumb-bench-trl"),
    report_to=[],
    save_strategy="no",
    use_cpu=True,
    bf16=dtype == "bfloat16",
    gradient_checkpointing=False,
    disable_tqdm=True,
    logging_steps=MANY,
    seed=0,
)
if stage.startswith("sft"):
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    lora = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    SFTTrainer(
        peft_config=lora if stage == "sft-lora" else None,
        model=LlamaForCausalLM(shape).float(),
        args=SFTConfig(**common, per_device_train_batch_size=16, max_steps=MANY, max_length=128, learning_rate=1e-4),
        train_dataset=Dataset.from_dict({"input_ids": rows(16 * 40, 128)}),
        processing_class=tokenizer("right"),
        callbacks=[InTurn()],
    ).train()
elif stage == "reward":
    from trl import RewardConfig, RewardTrainer

    RewardTrainer(
        model=classifier(),
        args=RewardConfig(**common, per_device_train_batch_size=16, max_steps=MANY, max_length=64),
        train_dataset=Dataset.from_dict({"chosen_ids": rows(16 * 40, 64), "rejected_ids": rows(16 * 40, 64)}),
        processing_class=tokenizer("right"),
        callbacks=[InTurn()],
    ).train()
else:
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    PPOTrainer(
        args=PPOConfig(
            **common,
            per_device_train_batch_size=32,
            num_mini_batches=4,
            num_ppo_epochs=4,
            total_episodes=32 * 1000,
            response_length=48,
            local_rollout_forward_batch_size=32,
            num_sample_generations=0,
            temperature=1.0,
            learning_rate=3e-6,
            kl_coef=0.05,
            eval_strategy="no",
        ),
        processing_class=tokenizer("left"),
        model=LlamaForCausalLM(shape).float(),
        ref_model=LlamaForCausalLM(shape).float(),
        reward_model=classifier(),
        value_model=classifier(),
        train_dataset=Dataset.from_dict({"input_ids": rows(32 * 1000, 16)}),
        eval_dataset=Dataset.from_dict({"input_ids": rows(32, 16)}),
        callbacks=[InTurn()],
    ).train()
