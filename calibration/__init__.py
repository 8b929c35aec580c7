"""Activation ranges and thresholds, from images and scores; no torch."""
