"""The Sana family."""
