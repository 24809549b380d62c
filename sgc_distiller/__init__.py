"""Prune the generators of trained GANs under the supervision of their discriminators."""
