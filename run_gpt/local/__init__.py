"""The local model: what is between the requests of the wire and an engine, in one process."""
