"""CUDA, by as few calls as tile and line-streaming inference take: a device seam, its kernels, the strip kept on the GPU."""
