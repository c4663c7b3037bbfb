"""OpenAI's API in terms of our own: each request says which native ones it stands for, and what their answers make."""
