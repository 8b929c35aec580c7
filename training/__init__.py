"""The reference trainer of the shipped networks."""
