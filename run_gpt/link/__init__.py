"""The inner wire: one long-lived gRPC call between each gateway and each executor, which carries all requests."""
