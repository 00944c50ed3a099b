"""What a person sees and keeps: progress, metrics."""
