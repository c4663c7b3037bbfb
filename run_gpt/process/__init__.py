"""Modules for every process of RunGPT: its log, request ids, traces, devices, and repairs of Jina."""
