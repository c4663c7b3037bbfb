"""Ollama's API under `/api`: chats, texts and vectors, and the models that are served."""
