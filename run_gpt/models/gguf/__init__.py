"""GGUF files: what their metadata and tensors say, as transformers' configuration, tokenizer and names of weights."""
