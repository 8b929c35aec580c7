"""What `benchmarks/peers.py` is made of: systems, their engines, strips, agreement, rounds, ratios, page."""
