"""TRL's RewardTrainer with LoRA on judgements in a file: prints the margins on others, its seconds and its peak of memory. The other side of hh.ts.

usage: trl_hh.py <model> <train.jsonl> <test.jsonl> <epochs> <learning rate> <rank> <batch> <seed> <longest> <precision>
"""

import json
import os
import resource
import sys
import time
import warnings

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
warnings.filterwarnings("ignore")

import torch
import transformers
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

folder, train, test, *numbers, precision = sys.argv[1:]
epochs, rate, rank, batch, seed, longest = map(float, numbers)
bf16 = precision == "bfloat16"
answers, sys.stdout = sys.stdout, sys.stderr
transformers.logging.set_verbosity_error()
torch.set_num_threads(2)
torch.manual_seed(int(seed))

tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
model.config.pad_token_id = tokenizer.pad_token_id


def rows(path):
    return [json.loads(line) for line in open(path)]


trainer = RewardTrainer(
    model=model,
    args=RewardConfig(
        output_dir=os.path.join(os.environ.get("TMPDIR", "/tmp"), "plumb-bench-trl"),
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=bf16,
        gradient_checkpointing=False,
        num_train_epochs=epochs,
        per_device_train_batch_size=2,  # more do not fit into 24 GB
        gradient_accumulation_steps=int(batch) // 2,
        learning_rate=rate,
        warmup_steps=10,
        lr_scheduler_type="linear",
        max_length=int(longest) + 8,
        logging_steps=5,
        seed=int(seed),
    ),
    train_dataset=Dataset.from_list(rows(train)),
    processing_class=tokenizer,
    peft_config=LoraConfig(
        task_type="SEQ_CLS",
        r=int(rank),
        lora_alpha=2 * int(rank),
        lora_dropout=0.0,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        modules_to_save=["score"],
    ),
)
began = time.perf_counter()
trainer.train()
seconds = time.perf_counter() - began

model = trainer.model.eval()


@torch.no_grad()
def score(messages):
    ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        return model(**ids).logits.float().item()


margins = [score(row["prompt"] + row["chosen"]) - score(row["prompt"] + row["rejected"]) for row in rows(test)]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"margins": margins, "seconds": seconds, "peakBytes": peak}), file=answers)
