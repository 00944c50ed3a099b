"""Room 8 and the composition root."""
