"""What Hugging Face's tokenizers makes of the cases below, written to tokenizer.json beside this file.

    python3 -m venv /tmp/golden && /tmp/golden/bin/pip install tokenizers==0.23.3
    /tmp/golden/bin/python test/golden/tokenizer.py
"""
import json
import random
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SPECIAL = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"]
WORDS = "order parcel refund where is my the a kettle late broken please thank you we have sent it 12 407 € naïve über 日本 語 🙂".split()


def corpus():
    rng = random.Random(7)
    lines = [" ".join(rng.choice(WORDS) for _ in range(rng.randrange(3, 12))) + rng.choice([".", " ?", "!\n", "…"]) for _ in range(400)]
    return lines + ["aaaa aaa aaaaaaa aa", "I'll say we've done what they'd do  \n\n  twice   "]


CASES = [
    "",
    " ",
    "where is my order 407 ?",
    "  leading and trailing  ",
    "tabs\tand\nnew\r\nlines\n\n  end",
    "I'll we've they'd it's CAN'T can't",
    "€ 12,50 — naïve über ½ Ⅷ ٣",
    "日本語のテキスト and 🙂👩‍👩‍👧 emoji",
    "a\u00a0b\u0085c\ufeffd\u2028e",
    # U+0085 is white space and U+FEFF is not, which JavaScript's \s has the other way round
    "a\u0085! !\ufeff! \ufeff",
    "a \u0085 b  \u0085c\t\ufeffd\ufeff\u0085",
    "\ufeff\u0085\n\u0085\ufeff\n\u0085 \n",
    "e\u0301 combining, \u0000 nul, \u007f del",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "<|user|>where is it ?<|end|><|assistant|>",
    "<|user|> <|user|<|end|>> x<|assistant|>",
    "code(x): return x[1]*2 // \\d+ {}",
]

SEQUENCE = lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLIT = lambda: pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

out = {"corpus": corpus(), "cases": CASES, "tokenizers": []}
for name, pre, size, plain_added, normalizer in [
    ("byte level", lambda: pre_tokenizers.ByteLevel(add_prefix_space=False), 420, [], None),
    ("digits, then byte level", SEQUENCE, 420, [], None),
    ("split, then byte level", SPLIT, 420, ["refund where"], None),
    ("split, then byte level, of composed text", SPLIT, 420, ["refund where"], normalizers.NFC()),
]:
    t = Tokenizer(models.BPE())
    if normalizer:
        t.normalizer = normalizer
    t.pre_tokenizer = pre()
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(
        corpus(),
        trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False),
    )
    t.add_tokens([AddedToken(text, normalized=False) for text in plain_added])
    rows = []
    for text in CASES:
        ids = t.encode(text, add_special_tokens=False).ids
        # ids show where a text is cut only if a merge could have crossed the cut
        whole = normalizer.normalize_str(text) if normalizer else text
        pieces = [whole[start:end] for _, (start, end) in t.pre_tokenizer.pre_tokenize_str(whole)]
        rows.append({"pieces": pieces, "ids": ids, "text": t.decode(ids), "with_special": t.decode(ids, skip_special_tokens=False)})
    rng = random.Random(3)
    for _ in range(8):  # any ids at all, so that UTF-8 breaks in the middle
        ids = [rng.randrange(t.get_vocab_size()) for _ in range(12)]
        rows.append({"ids": ids, "text": t.decode(ids), "with_special": t.decode(ids, skip_special_tokens=False)})
    out["tokenizers"].append({"name": name, "file": json.loads(t.to_str()), "rows": rows})

Path(__file__).with_suffix(".json").write_text(json.dumps(out, ensure_ascii=True) + "\n")
