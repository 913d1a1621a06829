"""Painting pictures with a trained model."""
