"""What a training run keeps, logs and shares between its processes."""
