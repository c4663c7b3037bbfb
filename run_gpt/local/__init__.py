"""Local model: the layer between API requests and an engine, in one process."""
