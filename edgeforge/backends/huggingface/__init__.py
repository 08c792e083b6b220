"""Hugging Face's layout, which several consumers load: safetensors shards under the checkpoint's own names, an index,
config.json and generation_config.json. The tokenizer's files are the pipeline's business.

Shared by the backends that differ in how one linear is stored. Nothing here knows a quantization format.
"""
