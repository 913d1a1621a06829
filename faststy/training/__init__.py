"""Training: settings, data, objective, steps, the loop, and what a run leaves behind."""
