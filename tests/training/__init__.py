"""Training, on targets so small that a head learns their language in seconds."""
