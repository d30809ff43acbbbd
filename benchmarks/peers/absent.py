"""Projects that were tried and have no rows, and why: what is said on the page is what was met."""

ABSENT: dict[str, str] = {
    "torchao, `Int4WeightOnlyConfig`": "no packing of it works on a CPU: plain and preshuffled want the CUDA library "
    "mslk, plain_int32 does not support it yet, tile_packed_to_4d asserts CUDA; its prototype's packing has rows",
    "ExLlamaV2 (EXL2)": 'its import compiles CUDA code: "CUDA_HOME environment variable is not set"',
    "AutoRound, learned rounding": "it works through the blocks of an architecture it knows; of its rounding to "
    "nearest with importances there are rows",
    "GPTQModel and llm-compressor, whole models": "as above; of GPTQModel's GPTQ and compressed-tensors' packed "
    "integers, layer by layer, there are rows",
}
