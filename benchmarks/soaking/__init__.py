"""What `benchmarks/soak.py` is made of: mixed traffic and its right answers, what is watched, and what is a leak."""
