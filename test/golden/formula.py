"""The weights that llama.py and qwen.py give their models, and test/support/golden.ts makes again."""
import numpy as np


def numbers(seed, count):
    """In [−1, 1); whole-number arithmetic, so that any language gives the same."""
    h = (np.arange(1, count + 1, dtype=np.uint32) * np.uint32(2654435761)) + np.uint32(seed * 40503)
    h = (h ^ (h >> np.uint32(15))) * np.uint32(2246822519)
    h = h ^ (h >> np.uint32(13))
    return (h / 2**31 - 1).astype(np.float32)
