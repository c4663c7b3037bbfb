"""A served model on engines that exist: Jina Cloud, Kubernetes, Docker Compose, AWS."""
