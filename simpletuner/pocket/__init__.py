"""The embedded default: a small Sana, its pictures and its configuration."""
