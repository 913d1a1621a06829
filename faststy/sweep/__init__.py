"""Sweeps: the same style trained with several λ, judged and shown side by side."""
