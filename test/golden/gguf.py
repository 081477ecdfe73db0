"""Writes blocks.gguf, blocks.json and quantised.json: a tensor of each format that Plumb reads, written and read by llama.cpp's own package
(its numpy dequantisation, which its tests hold to the C code bit for bit), and the
bytes that it quantises the float32 one to. pip install gguf==0.19.0 numpy; python gguf.py"""
import hashlib, json, os, sys
sys.path = [p for p in sys.path if os.path.abspath(p or '.') != os.path.dirname(os.path.abspath(__file__))]  # not this file
import numpy as np
from gguf import GGMLQuantizationType as T, GGUFReader, GGUFValueType, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize, quantize

here = os.path.dirname(os.path.abspath(__file__))
random = np.random.default_rng(1)
# Where each block has its halves: any bits but those of infinities and NaN.
HALVES = {T.Q8_0: [0], T.Q4_0: [0], T.Q4_1: [0, 2], T.Q4_K: [0, 2], T.Q6_K: [208], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q5_K: [0, 2]}

writer = GGUFWriter(os.path.join(here, 'blocks.gguf'), 'llama')
writer.add_string('a.text', 'grün\n')
writer.add_array('a.list', ['a', '', 'ü'])
writer.add_array('numbers', [1, -2, 3])
writer.add_bool('yes', True)
writer.add_uint64('large', 2**40)
writer.add_int16('small', -300)
writer.add_float64('half', 0.5)
for kind in [T.F32, T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q4_1, T.Q4_K, T.Q6_K, T.Q5_0, T.Q5_1, T.Q5_K]:
    size, width = GGML_QUANT_SIZES[kind]
    count = 2 * 512 // size
    if kind == T.F32:
        raw = random.normal(size=(2, 512)).astype(np.float32)
    elif kind == T.F16:
        raw = random.normal(size=(2, 512)).astype(np.float16)
    else:
        raw = random.integers(0, 256, (count, width), dtype=np.uint8)
        for at in HALVES.get(kind, []):
            halves = random.integers(0, 0x7C00, count, dtype=np.uint16) | (random.integers(0, 2, count, dtype=np.uint16) << 15)
            raw[:, at:at + 2] = halves.view(np.uint8).reshape(count, 2)
        if kind == T.BF16:
            raw.reshape(-1, 2)[:, 1] &= 0x3F  # finite
        raw = raw.reshape(2, -1)
    writer.add_tensor(f'as.{kind.name}', raw, raw_dtype=kind)
# A matrix of queries of 2 heads of 8 dimensions as convert_hf_to_gguf's LlamaModel.permute writes it.
queries = np.arange(16 * 4, dtype=np.float32).reshape(16, 4)
writer.add_tensor('blk.0.attn_q.weight', queries.reshape(2, 2, 4, 4).swapaxes(1, 2).reshape(16, 4))
writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file(); writer.close()

tensors = {}
for tensor in GGUFReader(os.path.join(here, 'blocks.gguf')).tensors:
    floats = np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
    tensors[tensor.name] = {'shape': [int(n) for n in reversed(tensor.shape)], 'first': [float(x) for x in floats.flat[:4]], 'sha256': hashlib.sha256(floats.tobytes()).hexdigest()}
json.dump(tensors, open(os.path.join(here, 'blocks.json'), 'w'), indent=1)

numbers = next(t.data for t in GGUFReader(os.path.join(here, 'blocks.gguf')).tensors if t.name == 'as.F32')
quantised = {kind.name.lower(): hashlib.sha256(quantize(numbers, kind).tobytes()).hexdigest() for kind in [T.F32, T.F16, T.Q8_0]}
json.dump(quantised, open(os.path.join(here, 'quantised.json'), 'w'), indent=1)
