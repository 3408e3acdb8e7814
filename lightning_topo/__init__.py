"""Lightning callbacks that watch the topology of a network's neurons while it trains."""
