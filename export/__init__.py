"""The upper floor that needs torch: checkpoints to verified, quantized, self-describing bundles."""
