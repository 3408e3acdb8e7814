"""What arXiv:2510.02670 says, measured again with the public API: `python -m benchmarks.paper`."""

EXPERIMENTS = ("shapes", "sphere", "edge", "merging", "warmup", "settings")
