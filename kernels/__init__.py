"""Triton kernels and their launchers, installed as ``faststy.kernels``."""

if __name__ != "faststy.kernels":  # a second import would compile and register everything twice
    raise ImportError(f"import faststy.kernels, not {__name__!r}: it is the same code")
