"""What `benchmarks/gpu.py` is made of: results, state of the GPU, ceilings, engines, strips, kernels; trials that take turns."""
