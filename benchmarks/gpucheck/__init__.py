"""What `benchmarks/gpu_check.py` is made of: parts that each run in a process of their own, and the report."""
