"""The Executor that hosts a causal language model; import `executor`, which imports jina."""
