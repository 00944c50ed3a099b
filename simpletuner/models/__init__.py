"""Model families and how they are loaded."""
