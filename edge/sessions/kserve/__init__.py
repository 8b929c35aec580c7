"""Engines of an inference server, by the Open Inference Protocol v2 over gRPC."""
