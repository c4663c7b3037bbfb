"""What every process of ours needs: its log, names of requests, traces, devices, and Jina mended."""
