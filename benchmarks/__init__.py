"""Speed, side by side with peers; run ``python -m benchmarks.training_step`` or ``python -m benchmarks.prediction``."""
